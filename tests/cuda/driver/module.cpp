// Modules and kernels: a kernel runs as the function of the same name in a library that was compiled for the host.
//
// An image is either the text `HOSTSHIM:<path of the library>`, or a real one (fatbin, cubin, PTX) that is looked at as
// a driver would: its magic, the sizes it names, whether it holds code for this device, and whether the kernel is in
// it. A real image then runs as the library that the setting `kernels` names. The library exports `NAME__shim` for each
// kernel and `driveway_shim_failure`, which says what a launch did wrong (a divergent barrier, for example).
#include "standin.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

namespace standin {
namespace {

using Kernel = void (*)(const char* arguments, const unsigned grid[3], const unsigned block[3], size_t shared_bytes);
using Failure = const char* (*)();

struct Module {
    void* library = nullptr;
    std::string code;  // the cubin in which kernels must be found; empty: not known
};

struct Function {
    std::string name;
    Kernel kernel = nullptr;
    Failure failure = nullptr;
    std::weak_ptr<Module> module;
    size_t most_shared_bytes = 48 << 10;
};

Handles<Module>& modules() {
    static auto* all = new Handles<Module>;
    return *all;
}
Handles<Function>& functions() {
    static auto* all = new Handles<Function>;
    return *all;
}

// Copies what can be read at an address, without a crash where nothing can: a driver is not told where an image ends.
std::string readable(const void* address, size_t bytes) {
    std::string copy(bytes, 0);
    // Through a file, where memory that is not there ends the write. (A confined worker may not call process_vm_readv.)
    int file = memfd_create("image", MFD_CLOEXEC);
    ssize_t got = write(file, address, bytes);
    got = got < 0 ? 0 : pread(file, &copy[0], size_t(got), 0);
    close(file);
    copy.resize(got < 0 ? 0 : size_t(got));
    return copy;
}

template <class T>
T field(const std::string& bytes, size_t offset) {
    T value{};
    if (offset + sizeof value <= bytes.size()) std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

bool is_cubin(const std::string& bytes) {
    constexpr uint16_t EM_CUDA = 190;
    return bytes.compare(0, 4, "\x7f""ELF") == 0 && field<uint16_t>(bytes, 18) == EM_CUDA;
}

// Cubins run on the same major version and the same or a later minor one; PTX on everything from its version on.
CUresult choose_from_fatbin(const std::string& container, std::string& code) {
    constexpr uint16_t PTX = 1, ELF = 2;
    Settings now = settings();
    int device = now.capability_major * 10 + now.capability_minor, best = -1;
    bool ptx = false;
    for (size_t at = field<uint16_t>(container, 6); at < container.size();) {
        auto kind = field<uint16_t>(container, at);
        auto header = field<uint32_t>(container, at + 4);
        auto size = field<uint64_t>(container, at + 8);
        int arch = int(field<uint32_t>(container, at + 28));
        bool plausible = (kind == PTX || kind == ELF) && header >= 64 && header < 4096 && size <= container.size() &&
                         at + header + size <= container.size();
        if (!plausible) return CUDA_ERROR_INVALID_IMAGE;
        std::string payload = container.substr(at + header, size);
        if (kind == ELF && !is_cubin(payload)) return CUDA_ERROR_INVALID_IMAGE;
        if (kind == ELF && arch / 10 == device / 10 && arch <= device && arch > best) best = arch, code = payload;
        if (kind == PTX && arch <= device) ptx = true;
        at += header + size;
    }
    return best >= 0 || ptx ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}

CUresult inspect(const void* image, std::string& code) {
    constexpr uint32_t FATBIN = 0xBA55ED50;
    std::string head = readable(image, 64);
    if (field<uint32_t>(head, 0) == FATBIN) {
        size_t whole = field<uint16_t>(head, 6) + field<uint64_t>(head, 8);
        if (whole > (size_t(1) << 30)) return CUDA_ERROR_INVALID_IMAGE;
        std::string container = readable(image, whole);
        return container.size() < whole ? CUDA_ERROR_INVALID_IMAGE : choose_from_fatbin(container, code);
    }
    if (is_cubin(head)) {
        // Section headers lie at the end.
        size_t whole = field<uint64_t>(head, 40) + size_t(field<uint16_t>(head, 58)) * field<uint16_t>(head, 60);
        if (whole > (size_t(1) << 30)) return CUDA_ERROR_INVALID_IMAGE;
        code = readable(image, whole);
        return code.size() < whole ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
    }
    bool ptx = head.compare(0, 8, ".version") == 0 || head.compare(0, 2, "//") == 0;
    return ptx ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

CUresult open(CUmodule* handle, const std::string& path, std::string code) {
    auto module = std::make_shared<Module>();
    module->code = std::move(code);
    module->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!module->library) {
        violation("no library of host kernels: " + path);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    *handle = modules().add<CUmodule>(module);
    return CUDA_SUCCESS;
}

CUresult load(CUmodule* handle, const void* image) {
    if (!image) return CUDA_ERROR_INVALID_VALUE;
    constexpr char MARK[] = "HOSTSHIM:";
    std::string head = readable(image, sizeof MARK - 1);
    if (head == MARK) {
        auto* path = static_cast<const char*>(image) + sizeof MARK - 1;
        return open(handle, std::string(path, strnlen(path, 4096)), "");
    }
    std::string code;
    if (CUresult refused = inspect(image, code)) return refused;
    return open(handle, settings().kernels, code);
}

// One launch, when its turn has come.
void run(const Function& function, const std::string& arguments, const unsigned grid[3], const unsigned block[3],
         size_t shared) {
    static auto* one_at_a_time = new std::mutex;
    int rule = kernel_rule(function.name);
    while (rule < 0) pause();
    while (settings().kernels_held) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::lock_guard<std::mutex> hold(*one_at_a_time);
    double ms = settings().kernel_ms;
    if (ms > 0) std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(ms));
    if (rule > 0) {
        sticky() = rule;
        return;
    }
    function.kernel(arguments.data(), grid, block, shared);
    const char* failure = function.failure ? function.failure() : nullptr;
    if (failure) {
        violation(function.name + ": " + failure);
        sticky() = CUDA_ERROR_LAUNCH_FAILED;
    }
    guards_hold(function.name);
}

// The packed arguments of `extra`; false when it has none.
bool packed_arguments(void** extra, std::string& arguments) {
    const char* buffer = nullptr;
    size_t bytes = 0;
    for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = static_cast<const char*>(extra[1]);
        if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<size_t*>(extra[1]);
    }
    if (buffer) arguments.assign(buffer, bytes);
    return buffer || !bytes;
}

}  // namespace
}  // namespace standin

using namespace standin;

extern "C" {

CUresult cuModuleLoadData(CUmodule* handle, const void* image) {
    ENTRY_IN_CONTEXT
    return load(handle, image);
}

CUresult cuModuleLoadDataEx(CUmodule* handle, const void* image, unsigned, CUjit_option*, void**) {
    ENTRY_IN_CONTEXT
    return load(handle, image);
}

CUresult cuModuleLoad(CUmodule* handle, const char* path) {
    ENTRY_IN_CONTEXT
    std::ifstream file(path, std::ios::binary);
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    std::string image((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    return load(handle, image.c_str());
}

CUresult cuModuleUnload(CUmodule handle) {
    ENTRY_IN_CONTEXT
    return modules().take(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuModuleGetFunction(CUfunction* handle, CUmodule module_handle, const char* name) {
    ENTRY_IN_CONTEXT
    auto module = modules().get(module_handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    std::string section = std::string(".text.") + name + '\0';
    if (!module->code.empty() && module->code.find(section) == std::string::npos) return CUDA_ERROR_NOT_FOUND;
    auto function = std::make_shared<Function>();
    function->name = name;
    function->module = module;
    function->kernel = reinterpret_cast<Kernel>(dlsym(module->library, (function->name + "__shim").c_str()));
    function->failure = reinterpret_cast<Failure>(dlsym(module->library, "driveway_shim_failure"));
    if (!function->kernel) return CUDA_ERROR_NOT_FOUND;
    *handle = functions().add<CUfunction>(function);
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
    ENTRY_IN_CONTEXT
    auto function = functions().get(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK              ? 1024
             : which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? int(function->most_shared_bytes)
                                                                        : 0;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
    ENTRY_IN_CONTEXT
    auto function = functions().get(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value < 0 || value > 99 << 10) return CUDA_ERROR_INVALID_VALUE;
    function->most_shared_bytes = size_t(value);
    return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache) {
    ENTRY_IN_CONTEXT
    return functions().get(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

// Deprecated, and still called by pycuda before every launch; the launch names the block again.
CUresult cuFuncSetBlockShape(CUfunction handle, int, int, int) {
    ENTRY_IN_CONTEXT
    return functions().get(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuFuncSetSharedSize(CUfunction handle, unsigned) {
    ENTRY_IN_CONTEXT
    return functions().get(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void** parameters,
                        void** extra) {
    ENTRY_IN_CONTEXT
    auto function = functions().get(handle);
    if (!function || function->module.expired()) return CUDA_ERROR_INVALID_HANDLE;
    if (parameters) return CUDA_ERROR_NOT_SUPPORTED;  // their sizes are known to the compiler of the kernel alone
    uint64_t threads = uint64_t(block_x) * block_y * block_z;
    if (!threads || threads > 1024 || block_z > 64 || !grid_x || !grid_y || !grid_z || grid_x > 2147483647u ||
        grid_y > 65535 || grid_z > 65535 || shared_bytes > function->most_shared_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    std::string arguments;
    if (!packed_arguments(extra, arguments)) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, {function->name, [=] {
                               const unsigned grid[3] = {grid_x, grid_y, grid_z};
                               const unsigned block[3] = {block_x, block_y, block_z};
                               run(*function, arguments, grid, block, shared_bytes);
                           }});
}
}
