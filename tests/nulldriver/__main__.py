"""python -m nulldriver PART: what it found, what was captured, what was refused, as JSON.

A warning is an error.
"""

import json
import sys
import warnings

import nulldriver

driver = nulldriver.install()
warnings.simplefilter("error")

from nulldriver import parts  # noqa: E402  # CuPy has found the device

found = parts.PARTS[sys.argv[1]](driver)
print(json.dumps(dict(found=found, graphs=driver.graphs(), refused=driver.refused())))
