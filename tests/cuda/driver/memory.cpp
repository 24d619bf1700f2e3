// Memory: between guard zones, never zero when it is new, and never handed out again soon after it was freed.
//
// A write past the end lands in a guard zone and is found when the next kernel or copy ends, on free, and at exit; with
// a real device it would go unseen, or end the context, which is what happens here. Freed memory is filled and kept for
// a while, so that a write into it is found as well. Copies are checked against the allocation they name.
#include "standin.h"

#include <cstdlib>
#include <cstring>
#include <deque>

namespace standin {
namespace {

constexpr size_t GUARD_BYTES = 256;  // also what a device allocation is aligned to
constexpr unsigned char GUARD = 0xFD, FRESH = 0xCD, FREED = 0xDD;
constexpr size_t QUARANTINE_BYTES = size_t(64) << 20;

enum class Kind { device, pinned, registered };
struct Allocation {
    Kind kind;
    size_t bytes;
    unsigned flags;
    unsigned char* block;  // where the leading guard zone begins; null for registered memory
};

struct Memory {
    std::mutex mutex;
    std::map<uintptr_t, Allocation> live;
    std::deque<std::pair<uintptr_t, Allocation>> quarantine;
    size_t quarantined = 0;
    Accounts accounts;
    bool broken = false;  // said once
};

Memory& memory() {
    static Memory* all = new Memory;
    return *all;
}

size_t padded(size_t bytes) { return (bytes + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES; }

bool filled(const unsigned char* from, size_t bytes, unsigned char with) {
    // The first byte, and every byte like its neighbour.
    return bytes == 0 || (from[0] == with && std::memcmp(from, from + 1, bytes - 1) == 0);
}

// The live allocation that holds the range, or the end.
std::map<uintptr_t, Allocation>::iterator find(uintptr_t address, size_t bytes) {
    auto& live = memory().live;
    auto found = live.upper_bound(address);
    if (found == live.begin()) return live.end();
    --found;
    size_t offset = address - found->first, whole = found->second.bytes;
    bool inside = offset <= whole && bytes <= whole - offset;
    return inside ? found : live.end();
}

void* allocate(Kind kind, size_t bytes, unsigned flags) {
    size_t whole = GUARD_BYTES + padded(bytes) + GUARD_BYTES;
    auto* block = static_cast<unsigned char*>(std::aligned_alloc(4096, (whole + 4095) / 4096 * 4096));
    if (!block) return nullptr;
    std::memset(block, GUARD, whole);
    std::memset(block + GUARD_BYTES, FRESH, bytes);
    memory().live[uintptr_t(block + GUARD_BYTES)] = {kind, bytes, flags, block};
    return block + GUARD_BYTES;
}

std::string faults_of(uintptr_t address, const Allocation& of) {
    if (!of.block) return "";
    auto* first = reinterpret_cast<unsigned char*>(address);
    std::string size = std::to_string(of.bytes) + " bytes";
    if (!filled(of.block, GUARD_BYTES, GUARD)) return "wrote before an allocation of " + size;
    size_t behind = padded(of.bytes) - of.bytes + GUARD_BYTES;
    if (!filled(first + of.bytes, behind, GUARD)) return "wrote behind an allocation of " + size;
    return "";
}

// With the lock held.
bool look(const std::string& after) {
    std::string fault;
    for (auto& entry : memory().live)
        if (fault.empty()) fault = faults_of(entry.first, entry.second);
    for (auto& entry : memory().quarantine)
        if (fault.empty() && !filled(reinterpret_cast<unsigned char*>(entry.first), entry.second.bytes, FREED))
            fault = "wrote into freed memory of " + std::to_string(entry.second.bytes) + " bytes";
    if (fault.empty()) return true;
    int none = 0;
    sticky().compare_exchange_strong(none, CUDA_ERROR_ILLEGAL_ADDRESS);
    if (!memory().broken) violation(after + " " + fault);
    memory().broken = true;
    return false;
}

void quarantine(uintptr_t address, const Allocation& of) {
    Memory& all = memory();
    std::memset(reinterpret_cast<void*>(address), FREED, of.bytes);
    all.quarantine.emplace_back(address, of);
    all.quarantined += of.bytes;
    while (all.quarantined > QUARANTINE_BYTES) {
        auto oldest = all.quarantine.front();
        all.quarantine.pop_front();
        all.quarantined -= oldest.second.bytes;
        std::free(oldest.second.block);
    }
}

CUresult release(uintptr_t address, Kind kind, const char* call) {
    Memory& all = memory();
    std::lock_guard<std::mutex> hold(all.mutex);
    auto found = all.live.find(address);
    if (found == all.live.end() || found->second.kind != kind) return CUDA_ERROR_INVALID_VALUE;
    look(std::string("before ") + call + ", something");
    Allocation of = found->second;
    all.live.erase(found);
    if (kind == Kind::device) {
        all.accounts.used_bytes -= of.bytes;
        --all.accounts.allocations;
    } else {
        all.accounts.pinned_bytes -= of.bytes;
        --all.accounts.pinned_allocations;
    }
    if (of.block) quarantine(address, of);
    return CUDA_SUCCESS;
}

Operation copy(void* to, const void* from, size_t bytes, const char* what) {
    return {what, [=] {
                std::memmove(to, from, bytes);
                guards_hold(what);
            }};
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(uintptr_t(address)); }

template <class T>
Operation fill(CUdeviceptr to, T value, size_t count, const char* what) {
    return {what, [=] {
                auto* first = static_cast<T*>(pointer(to));
                for (size_t i = 0; i < count; ++i) first[i] = value;
            }};
}

}  // namespace

bool device_can_reach(CUdeviceptr address, size_t bytes) {
    std::lock_guard<std::mutex> hold(memory().mutex);
    auto found = find(uintptr_t(address), bytes);
    if (found == memory().live.end()) return false;
    return found->second.kind == Kind::device || (found->second.flags & CU_MEMHOSTALLOC_DEVICEMAP);
}

bool is_pinned(const void* address, size_t bytes) {
    std::lock_guard<std::mutex> hold(memory().mutex);
    auto found = find(uintptr_t(address), bytes);
    return found != memory().live.end() && found->second.kind != Kind::device;
}

bool guards_hold(const std::string& after) {
    std::lock_guard<std::mutex> hold(memory().mutex);
    return look(after);
}

Accounts accounts() {
    Memory& all = memory();
    std::lock_guard<std::mutex> hold(all.mutex);
    Accounts now = all.accounts;
    for (auto& entry : all.live) now.left_behind.push_back(entry.second.bytes);
    return now;
}

void free_everything() {
    wait_for_all_streams();
    Memory& all = memory();
    std::lock_guard<std::mutex> hold(all.mutex);
    look("before the context ended, something");
    for (auto& entry : all.live) {
        all.accounts.left_behind.push_back(entry.second.bytes);
        if (entry.second.block) quarantine(entry.first, entry.second);
    }
    all.live.clear();
    all.accounts.used_bytes = all.accounts.pinned_bytes = 0;
    all.accounts.allocations = all.accounts.pinned_allocations = 0;
}

}  // namespace standin

using namespace standin;

extern "C" {

CUresult cuMemGetInfo(size_t* free_bytes, size_t* total) {
    ENTRY_IN_CONTEXT
    *total = settings().memory_bytes;
    *free_bytes = *total - accounts().used_bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
    ENTRY_IN_CONTEXT
    if (CUresult refused = refuse_in_capture()) return refused;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    size_t limit = settings().memory_bytes;
    Memory& all = memory();
    std::lock_guard<std::mutex> hold(all.mutex);
    if (bytes > limit || all.accounts.used_bytes > limit - bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    void* made = allocate(Kind::device, bytes, 0);
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = CUdeviceptr(uintptr_t(made));
    all.accounts.used_bytes += bytes;
    ++all.accounts.allocations;
    if (all.accounts.used_bytes > all.accounts.peak_bytes) all.accounts.peak_bytes = all.accounts.used_bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
    ENTRY_IN_CONTEXT
    if (CUresult refused = refuse_in_capture()) return refused;
    if (!address) return CUDA_SUCCESS;
    wait_for_all_streams();  // freeing waits for the device
    return release(uintptr_t(address), Kind::device, "cuMemFree");
}

CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    ENTRY_IN_CONTEXT
    if (CUresult refused = refuse_in_capture()) return refused;
    if (!bytes || flags & ~7u) return CUDA_ERROR_INVALID_VALUE;
    Memory& all = memory();
    std::lock_guard<std::mutex> hold(all.mutex);
    *address = allocate(Kind::pinned, bytes, flags);
    if (!*address) return CUDA_ERROR_OUT_OF_MEMORY;
    all.accounts.pinned_bytes += bytes;
    ++all.accounts.pinned_allocations;
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* address) {
    ENTRY_IN_CONTEXT
    if (CUresult refused = refuse_in_capture()) return refused;
    wait_for_all_streams();
    return release(uintptr_t(address), Kind::pinned, "cuMemFreeHost");
}

CUresult cuMemHostRegister(void* address, size_t bytes, unsigned flags) {
    ENTRY_IN_CONTEXT
    if (CUresult refused = refuse_in_capture()) return refused;
    Memory& all = memory();
    std::lock_guard<std::mutex> hold(all.mutex);
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    if (find(uintptr_t(address), 1) != all.live.end()) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    all.live[uintptr_t(address)] = {Kind::registered, bytes, flags, nullptr};
    all.accounts.pinned_bytes += bytes;
    ++all.accounts.pinned_allocations;
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void* address) {
    ENTRY_IN_CONTEXT
    CUresult code = release(uintptr_t(address), Kind::registered, "cuMemHostUnregister");
    return code ? CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED : code;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr* device, void* host, unsigned) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(CUdeviceptr(uintptr_t(host)), 1)) return CUDA_ERROR_INVALID_VALUE;
    *device = CUdeviceptr(uintptr_t(host));
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetFlags(unsigned* flags, void* host) {
    ENTRY_IN_CONTEXT
    std::lock_guard<std::mutex> hold(memory().mutex);
    auto found = find(uintptr_t(host), 1);
    if (found == memory().live.end() || found->second.kind == Kind::device) return CUDA_ERROR_INVALID_VALUE;
    *flags = found->second.flags;
    return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
    ENTRY_IN_CONTEXT
    std::lock_guard<std::mutex> hold(memory().mutex);
    auto found = find(uintptr_t(address), 1);
    if (found == memory().live.end()) return CUDA_ERROR_INVALID_VALUE;
    if (base) *base = CUdeviceptr(found->first);
    if (bytes) *bytes = found->second.bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return submit_and_wait(copy(pointer(to), from, bytes, "cuMemcpyHtoD"));
}

CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return submit_and_wait(copy(to, pointer(from), bytes, "cuMemcpyDtoH"));
}

CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, bytes) || !device_can_reach(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return submit(nullptr, copy(pointer(to), pointer(from), bytes, "cuMemcpyDtoD"));
}

// Memory that is not pinned is copied by way of the driver's own: not in a capture, and no copy back that runs beside.
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (is_pinned(from, bytes)) return submit(stream, copy(pointer(to), from, bytes, "cuMemcpyHtoDAsync"));
    if (CUresult refused = refuse_in_capture()) return refused;
    auto* first = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
    return submit(stream, {"cuMemcpyHtoDAsync", [=] { std::memcpy(pointer(to), staged->data(), bytes); }});
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (is_pinned(to, bytes)) return submit(stream, copy(to, pointer(from), bytes, "cuMemcpyDtoHAsync"));
    if (CUresult refused = refuse_in_capture()) return refused;
    if (CUresult refused = submit(stream, copy(to, pointer(from), bytes, "cuMemcpyDtoHAsync"))) return refused;
    stream_of(stream)->wait_idle();
    return CUresult(sticky().load());
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, bytes) || !device_can_reach(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, copy(pointer(to), pointer(from), bytes, "cuMemcpyDtoDAsync"));
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, count)) return CUDA_ERROR_INVALID_VALUE;
    return submit(nullptr, fill(to, value, count, "cuMemsetD8"));
}

CUresult cuMemsetD32(CUdeviceptr to, unsigned value, size_t count) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, 4 * count) || to % 4) return CUDA_ERROR_INVALID_VALUE;
    return submit(nullptr, fill(to, value, count, "cuMemsetD32"));
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, count)) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, fill(to, value, count, "cuMemsetD8Async"));
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    ENTRY_IN_CONTEXT
    if (!device_can_reach(to, 4 * count) || to % 4) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, fill(to, value, count, "cuMemsetD32Async"));
}
}
