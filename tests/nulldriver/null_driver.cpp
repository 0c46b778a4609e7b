// A device that computes nothing                                       tests/nulldriver/__init__.py
//
// The functions of CuPy's modules `runtime` and `driver` that gpuconv comes through, under the
// names runtime_<name> and driver_<name>. Their prototypes come from CuPy itself (see __init__.py):
// what is written otherwise here does not compile. Those that are missing here refuse to be called;
// those that an older or a newer CuPy does not have are not used.
//
// memory      of the host, zeros at first; copies and fills are done at once and stay inside blocks
// kernels     are not run; their launch must be one that CUDA takes
// capture     notes the names of what is launched, and refuses what the graph would not hold, what
//             waits for the device, and what is launched on another stream
//
// As in CUDA, a refusal is an error of the call; as nobody must be able to swallow it, it is noted
// as well. All calls hold Python's lock, so nothing here needs one.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr size_t TOTAL = size_t{8} << 30;         // bytes of the device
constexpr unsigned STATIC_SHARED = 48 << 10;      // bytes a block may have without asking
constexpr unsigned SHARED = 163 << 10;            // and with asking: sm_80
enum Copy { HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2, DEVICE_TO_DEVICE = 3 };
enum Attribute { THREADS = 1, WARP = 10, MULTIPROCESSORS = 16, RESIDENT = 39, MAJOR = 75, MINOR = 76,
                 OPT_IN = 97 };                   // of enum cudaDeviceAttr
constexpr int MAX_DYNAMIC_SHARED = 8;             // of enum CUfunction_attribute

struct Function {
    std::string name;
    intptr_t module;
    unsigned dynamic = STATIC_SHARED;             // bytes of shared memory that it may be given
};

int architecture = 80;
intptr_t handles = 0x1000;                        // of streams, events, modules, graphs
using Blocks = std::map<intptr_t, size_t>;        // address, bytes
Blocks blocks, pinned;                            // memory of the device; of the host, page-locked
std::map<intptr_t, std::string> modules;          // what was loaded: PTX
std::map<intptr_t, Function> functions;
intptr_t capturing = 0;                           // the stream
std::string captured;                             // a line for all that went into a graph, and
                                                  // ";" behind each graph
std::string refused;                              // a line each
std::string report;                               // what was asked for last

PyObject *none() {
    Py_IncRef(&_Py_NoneStruct);
    return &_Py_NoneStruct;
}

// Notes it and sets Python's exception; NULL for the caller to return.
PyObject *refuse(const std::string &why) {
    refused += why + "\n";
    PyErr_SetString(PyExc_RuntimeError, ("null driver: " + why).c_str());
    return nullptr;
}

// Something that waits, or that a graph would not repeat.
PyObject *unless_capturing(const char *what) {
    return capturing ? refuse(std::string(what) + " while a stream captures") : none();
}

bool inside(const Blocks &some, intptr_t start, size_t size) {
    auto next = some.upper_bound(start);
    if (next == some.begin()) return false;
    auto [first, length] = *--next;
    return size_t(start - first) + size <= length;
}

intptr_t allocate(Blocks &some, size_t size) {
    auto start = reinterpret_cast<intptr_t>(calloc(1, size));
    some[start] = size;
    return start;
}

PyObject *release(Blocks &some, intptr_t start) {
    if (!some.erase(start)) return refuse("free of what is no block");
    free(reinterpret_cast<void *>(start));
    return none();
}

// Work for a stream, which may be capturing.
PyObject *enqueue(const std::string &name, intptr_t stream) {
    if (!capturing) return none();
    if (stream != capturing) return refuse(name + " on another stream than the one that captures");
    captured += name + "\n";
    return none();
}

PyObject *copy(intptr_t target, intptr_t source, size_t size, int kind) {
    if (size && ((kind != DEVICE_TO_HOST && !inside(blocks, target, size)) ||
                 (kind != HOST_TO_DEVICE && !inside(blocks, source, size))))
        return refuse("a copy of " + std::to_string(size) + " bytes leaves its block");
    memmove(reinterpret_cast<void *>(target), reinterpret_cast<void *>(source), size);
    return none();
}

PyObject *fill(intptr_t target, int value, size_t size) {
    if (size && !inside(blocks, target, size))
        return refuse("a memset of " + std::to_string(size) + " bytes leaves its block");
    memset(reinterpret_cast<void *>(target), value, size);
    return none();
}

const char *words(PyObject *text) { return PyUnicode_AsUTF8AndSize(text, nullptr); }

}  // namespace

// -- what the tests ask ----------------------------------------------------------------------------

extern "C" {

void null_architecture(int number) { architecture = number; }

size_t null_live() {
    size_t sum = 0;
    for (auto &[start, size] : blocks) sum += size;
    return sum;
}

const char *null_captured() { return (report = captured).c_str(); }

const char *null_refused() { return (report = refused).c_str(); }

const char *null_ptx(intptr_t function) { return modules[functions[function].module].c_str(); }

// -- devices ---------------------------------------------------------------------------------------

PyObject *runtime__ensure_context() { return none(); }
int runtime_getDevice(int) { return 0; }
int runtime_getDeviceCount(int) { return 1; }
PyObject *runtime_setDevice(int device, int) { return device ? refuse("no such device") : none(); }
int runtime_driverGetVersion(int) { return 13000; }
PyObject *runtime_memGetInfo(int) { return Py_BuildValue("nn", TOTAL - null_live(), TOTAL); }
PyObject *runtime_deviceSynchronize(int) { return unless_capturing("deviceSynchronize"); }

PyObject *runtime_getDeviceProperties(int, int) {
    return Py_BuildValue("{s:y,s:n,s:i,s:i,s:i}", "name", "a device that computes nothing",
                         "totalGlobalMem", TOTAL, "major", architecture / 10, "minor",
                         architecture % 10, "multiProcessorCount", 108);
}

int runtime_deviceGetAttribute(int attribute, int, int) {
    switch (attribute) {
    case THREADS: return 1024;
    case WARP: return 32;
    case MULTIPROCESSORS: return 108;
    case RESIDENT: return 2048;
    case MAJOR: return architecture / 10;
    case MINOR: return architecture % 10;
    case OPT_IN: return SHARED;
    }
    refuse("deviceGetAttribute " + std::to_string(attribute) + " is not known");
    return -1;
}

// -- memory ----------------------------------------------------------------------------------------

intptr_t runtime_malloc(size_t size, int) {
    if (null_live() + size > TOTAL) {
        PyErr_SetString(PyExc_MemoryError, "null driver: out of memory");
        return 0;
    }
    return allocate(blocks, size);
}

PyObject *runtime_free(intptr_t start, int) {
    return capturing ? refuse("free while a stream captures") : release(blocks, start);
}

intptr_t runtime_hostAlloc(size_t size, unsigned, int) { return allocate(pinned, size); }
PyObject *runtime_freeHost(intptr_t start, int) { return release(pinned, start); }

int runtime_pointerGetMemoryType(intptr_t address, int) {  // enum cudaMemoryType
    return inside(blocks, address, 1) ? 2 : inside(pinned, address, 1) ? 1 : 0;
}

// Before CuPy 14.2.
PyObject *runtime_pointerGetAttributes(intptr_t address, int) {
    PyObject *module = PyImport_ImportModule("cupy_backends.cuda.api.runtime");
    return PyObject_CallMethod(module, "PointerAttributes", "inni", 0, address, address,
                               runtime_pointerGetMemoryType(address, 0));
}

PyObject *runtime_memcpy(intptr_t target, intptr_t source, size_t size, int kind, int) {
    return capturing ? refuse("memcpy while a stream captures") : copy(target, source, size, kind);
}

PyObject *runtime_memcpyAsync(intptr_t target, intptr_t source, size_t size, int kind,
                              intptr_t stream, int) {
    if (capturing && kind != DEVICE_TO_DEVICE)
        return refuse("a copy between host and device while a stream captures");
    PyObject *done = enqueue("memcpy", stream);
    return done ? copy(target, source, size, kind) : done;
}

PyObject *runtime_memset(intptr_t target, int value, size_t size, int) {
    return capturing ? refuse("memset while a stream captures") : fill(target, value, size);
}

PyObject *runtime_memsetAsync(intptr_t target, int value, size_t size, intptr_t stream, int) {
    PyObject *done = enqueue("memset", stream);
    return done ? fill(target, value, size) : done;
}

// -- streams, events, graphs -----------------------------------------------------------------------

intptr_t runtime_streamCreate(int) { return ++handles; }
intptr_t runtime_streamCreateWithFlags(unsigned, int) { return ++handles; }
intptr_t runtime_streamCreateWithPriority(unsigned, int, int) { return ++handles; }
PyObject *runtime_streamDestroy(intptr_t, int) { return none(); }
PyObject *runtime_streamSynchronize(intptr_t, int) { return unless_capturing("streamSynchronize"); }
PyObject *runtime_streamQuery(intptr_t, int) { return unless_capturing("streamQuery"); }
int runtime_streamIsCapturing(intptr_t stream, int) { return stream && stream == capturing; }

PyObject *runtime_streamBeginCapture(intptr_t stream, int, void *) {
    if (capturing) return refuse("streamBeginCapture while a stream captures");
    capturing = stream;
    return none();
}

intptr_t runtime_streamEndCapture(intptr_t stream, int) {
    if (!capturing || stream != capturing) {
        refuse("streamEndCapture of a stream that does not capture");
        return 0;
    }
    capturing = 0;
    captured += ";\n";
    return ++handles;
}

intptr_t runtime_eventCreate(int) { return ++handles; }
intptr_t runtime_eventCreateWithFlags(unsigned, int) { return ++handles; }
PyObject *runtime_eventDestroy(intptr_t, int) { return none(); }
PyObject *runtime_eventRecord(intptr_t, intptr_t, int) { return unless_capturing("eventRecord"); }
PyObject *runtime_eventSynchronize(intptr_t, int) { return unless_capturing("eventSynchronize"); }
PyObject *runtime_eventQuery(intptr_t, int) { return unless_capturing("eventQuery"); }
float runtime_eventElapsedTime(intptr_t, intptr_t, int) { return 1; }
PyObject *runtime_streamWaitEvent(intptr_t, intptr_t, int, void *) {
    return unless_capturing("streamWaitEvent");
}

intptr_t runtime_graphInstantiate(intptr_t, int) { return ++handles; }
PyObject *runtime_graphLaunch(intptr_t, intptr_t, int) { return unless_capturing("graphLaunch"); }
PyObject *runtime_graphUpload(intptr_t, intptr_t, int) { return none(); }
PyObject *runtime_graphExecDestroy(intptr_t, int) { return none(); }
PyObject *runtime_graphDestroy(intptr_t, int) { return none(); }

// -- kernels ---------------------------------------------------------------------------------------

intptr_t driver_moduleLoadData(PyObject *image, int) {
    char *text = nullptr;
    if (capturing) refuse("moduleLoadData while a stream captures");
    else PyBytes_AsStringAndSize(image, &text, nullptr);
    if (!text) return 0;
    modules[++handles] = text;
    return handles;
}

PyObject *driver_moduleUnload(intptr_t module, int) {
    modules.erase(module);
    return none();
}

intptr_t driver_moduleGetFunction(intptr_t module, PyObject *name, int) {
    functions[++handles] = {words(name), module};
    return handles;
}

int driver_funcGetAttribute(int, intptr_t, int) { return STATIC_SHARED; }

PyObject *driver_funcSetAttribute(intptr_t function, int attribute, int value, int) {
    if (attribute != MAX_DYNAMIC_SHARED) return refuse("funcSetAttribute: it is not known");
    if (unsigned(value) > SHARED) return refuse("more shared memory than a block can have");
    functions[function].dynamic = value;
    return none();
}

PyObject *driver_launchKernel(intptr_t function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                              unsigned by, unsigned bz, unsigned shared, intptr_t stream,
                              intptr_t, intptr_t, int) {
    const Function &f = functions[function];
    bool grid = gx && gx < 1u << 31 && gy && gy < 1u << 16 && gz && gz < 1u << 16;
    bool block = bx && by && bz && bz <= 64 && size_t(bx) * by * bz <= 1024;
    if (!grid || !block || shared > f.dynamic)
        return refuse(f.name + ": no device takes this launch");
    return enqueue(f.name, stream);
}

}  // extern "C"
