"""The main job: ``cifar_convnet`` on CIFAR-10, in 18 minutes of CPU time: 11 on two cores."""

from gpuconv.recipes.recipe import Recipe
from gpuconv.train import Settings

CIFAR10 = Recipe(
    says="six 3x3 convolutions on CIFAR-10",
    model="cifar_convnet",
    settings=Settings(epochs=12, batch_size=250, optimizer="muon", lr=0.06, momentum=0.9,
                      weight_decay=0.02, schedule="one-cycle", label_smoothing=0.1,
                      flip="alternate", crop=2, padding_mode="reflect", views="six"),
    measured="91.40 % of CIFAR-10's test images after 12 epochs, with six views (90.76 % with "
             "one), 11 minutes on 2 CPU cores, 18 of CPU time (seed 0)")
