// The device, its contexts, and what errors are called.
//
// There is one device with one primary context (which a real driver counts as well), and others that are created. A
// thread has a stack of current contexts. A context that is lost stays lost: as with a real driver, only the end of the
// process helps.
#include "standin.h"

#include <cctype>
#include <cstring>

namespace standin {
namespace {

struct Device {
    std::mutex mutex;
    std::atomic<bool> initialised{false};
    std::atomic<int> sticky{0};
    Context primary;
    long retained = 0;
    std::set<Context*> created;
};

Device& device() {
    static Device* only = new Device;
    return *only;
}

thread_local std::vector<Context*> current;

// A handle is the context's address; contexts are few and never freed, so that an old handle is found out.
bool alive(Context* context) {
    Device& all = device();
    std::lock_guard<std::mutex> hold(all.mutex);
    return context == &all.primary ? all.retained > 0 : all.created.count(context) > 0;
}

CUcontext handle(Context* context) { return reinterpret_cast<CUcontext>(context); }

int attribute(CUdevice_attribute which, const Settings& now) {
    switch (which) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return now.capability_major;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return now.capability_minor;
        case CU_DEVICE_ATTRIBUTE_INTEGRATED: return now.integrated;
        case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
        case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 1;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 16;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 1536;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 99 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1300000;         // kHz
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 3200000;  // kHz
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 256;
        default: return 0;
    }
}

struct Name {
    int code;
    const char* text;
};
// From cuda.h, when the stand-in is built.
const Name names[] = {
#include "error_names.inc"
};
// The sentences of a real driver where they are known; elsewhere the name in small letters, so that each is its own.
const Name sentences[] = {
    {0, "no error"},
    {1, "invalid argument"},
    {2, "out of memory"},
    {3, "initialization error"},
    {4, "driver shutting down"},
    {100, "no CUDA-capable device is detected"},
    {101, "invalid device ordinal"},
    {200, "device kernel image is invalid"},
    {201, "invalid device context"},
    {209, "no kernel image is available for execution on the device"},
    {218, "a PTX JIT compilation failed"},
    {400, "invalid resource handle"},
    {401, "the operation cannot be performed in the present state"},
    {500, "named symbol not found"},
    {600, "device not ready"},
    {700, "an illegal memory access was encountered"},
    {701, "too many resources requested for launch"},
    {702, "the launch timed out and was terminated"},
    {709, "context is destroyed"},
    {719, "unspecified launch failure"},
    {801, "operation not supported"},
    {900, "operation not permitted when stream is capturing"},
    {901, "operation failed due to a previous error during capture"},
    {905, "dependency created on uncaptured work in another stream"},
    {906, "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "operation not permitted on an event last recorded in a capturing stream"},
    {908, "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "unknown error"},
};

const char* name_of(int code) {
    for (const Name& name : names)
        if (name.code == code) return name.text;
    return nullptr;
}

const char* sentence_of(int code) {
    for (const Name& sentence : sentences)
        if (sentence.code == code) return sentence.text;
    static std::mutex mutex;
    static auto* made = new std::map<int, std::string>;
    std::lock_guard<std::mutex> hold(mutex);
    const char* name = name_of(code);
    if (!name) return nullptr;
    std::string& text = (*made)[code];
    if (text.empty())
        for (const char* c = name + std::strlen("CUDA_ERROR_"); *c; ++c)
            text += *c == '_' ? ' ' : char(std::tolower(*c));
    return text.c_str();
}

}  // namespace

bool initialised() { return device().initialised; }
bool has_current_context() { return !current.empty() && alive(current.back()); }
std::atomic<int>& sticky() { return device().sticky; }

}  // namespace standin

using namespace standin;

extern "C" {

CUresult cuInit(unsigned flags) {
    ENTRY_ANYWAY
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    Settings now = settings();
    if (now.lost) return CUresult(now.lost);
    if (!now.devices) return CUDA_ERROR_NO_DEVICE;
    device().initialised = true;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
    ENTRY_ANYWAY
    *version = settings().driver_version;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult code, const char** text) {
    ENTRY_ANYWAY
    *text = name_of(code);
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult code, const char** text) {
    ENTRY_ANYWAY
    *text = sentence_of(code);
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetCount(int* count) {
    ENTRY
    *count = settings().devices;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* handle, int ordinal) {
    ENTRY
    if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
    *handle = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    ENTRY
    std::strncpy(name, settings().device_name.c_str(), size_t(length));
    name[length - 1] = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice) {
    ENTRY
    std::memcpy(uuid->bytes, "stand-in driver", 16);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char* text, int length, CUdevice) {
    ENTRY
    std::strncpy(text, "0000:01:00.0", size_t(length));
    text[length - 1] = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
    ENTRY
    *bytes = settings().memory_bytes;
    return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
    ENTRY
    Settings now = settings();
    *major = now.capability_major;
    *minor = now.capability_minor;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    ENTRY
    *value = attribute(which, settings());
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    ENTRY
    std::lock_guard<std::mutex> hold(device().mutex);
    device().primary.primary = true;
    ++device().retained;
    *context = handle(&device().primary);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    ENTRY_ANYWAY
    bool last;
    {
        std::lock_guard<std::mutex> hold(device().mutex);
        if (device().retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
        last = --device().retained == 0;
    }
    if (last) free_everything();
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxReset(CUdevice) {
    ENTRY_ANYWAY
    {
        std::lock_guard<std::mutex> hold(device().mutex);
        device().retained = 0;
    }
    free_everything();
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice, unsigned flags) {
    ENTRY
    std::lock_guard<std::mutex> hold(device().mutex);
    device().primary.flags = flags;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
    ENTRY
    std::lock_guard<std::mutex> hold(device().mutex);
    *flags = device().primary.flags;
    *active = device().retained > 0;
    return CUDA_SUCCESS;
}

CUresult cuCtxCreate(CUcontext* context, CUctxCreateParams*, unsigned flags, CUdevice) {
    ENTRY
    auto* made = new Context{false, flags};
    std::lock_guard<std::mutex> hold(device().mutex);
    device().created.insert(made);
    current.push_back(made);
    *context = handle(made);
    return CUDA_SUCCESS;
}

CUresult cuCtxDestroy(CUcontext context) {
    ENTRY_ANYWAY
    auto* known = reinterpret_cast<Context*>(context);
    bool last;
    {
        std::lock_guard<std::mutex> hold(device().mutex);
        if (!device().created.erase(known)) return CUDA_ERROR_INVALID_CONTEXT;
        last = device().created.empty() && device().retained == 0;
    }
    if (!current.empty() && current.back() == known) current.pop_back();
    if (last) free_everything();
    return CUDA_SUCCESS;
}

CUresult cuCtxAttach(CUcontext* context, unsigned) {
    ENTRY_ANYWAY
    if (current.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *context = handle(current.back());
    return CUDA_SUCCESS;
}

CUresult cuCtxDetach(CUcontext context) { return cuCtxDestroy(context); }

CUresult cuCtxPushCurrent(CUcontext context) {
    ENTRY_ANYWAY
    auto* known = reinterpret_cast<Context*>(context);
    if (!alive(known)) return CUDA_ERROR_INVALID_CONTEXT;
    current.push_back(known);
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
    ENTRY_ANYWAY
    if (current.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = handle(current.back());
    current.pop_back();
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    ENTRY_ANYWAY
    *context = current.empty() ? nullptr : handle(current.back());
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    ENTRY_ANYWAY
    auto* known = reinterpret_cast<Context*>(context);
    if (context && !alive(known)) return CUDA_ERROR_INVALID_CONTEXT;
    if (!current.empty()) current.pop_back();
    if (context) current.push_back(known);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* ordinal) {
    ENTRY_ANYWAY
    if (current.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *ordinal = 0;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetFlags(unsigned* flags) {
    ENTRY_IN_CONTEXT
    *flags = current.back()->flags;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext, unsigned* version) {
    ENTRY
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTRY_IN_CONTEXT
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
    ENTRY_IN_CONTEXT
    if (CUresult refused = refuse_in_capture()) return refused;
    wait_for_all_streams();
    return CUresult(sticky().load());
}
}
