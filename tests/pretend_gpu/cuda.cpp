// libcuda.so.1 of the pretend GPU: "device memory" is host memory, and a kernel is a function that is called once per
// CUDA thread. Holds the entry points of the CUDA runtime that CuPy's runtime.pyx calls, and those of the CUDA driver
// that its driver.pyx looks up. build.py adds a stub that answers cudaErrorNotSupported for every other runtime call.
//
// All work is done when it is submitted, so that streams and events order nothing: code that forgot to synchronise is
// not caught here.

#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <vector>

// ---------------------------------------------------------------------------------------------------------------------
// Settings: environment variables, read whenever they are needed
// ---------------------------------------------------------------------------------------------------------------------

static long long setting(const char* name, long long otherwise) {
  const char* text = getenv(name);
  return text && *text ? atoll(text) : otherwise;
}
static int device_count() { return int(setting("PRETEND_GPU_DEVICES", 1)); }
static size_t memory_size() { return size_t(setting("PRETEND_GPU_MEMORY", 8LL << 30)); }
static int compute_capability() { return int(setting("PRETEND_GPU_CC", 80)); }

static const int VERSION = 13020;  // CUDA 13.2, for which the wheel was built
static thread_local int current_device = 0;

// ---------------------------------------------------------------------------------------------------------------------
// Events that tests count. The names are in __init__.py, in the same order.
// ---------------------------------------------------------------------------------------------------------------------

enum Kind { H2D, D2H, D2D, H2H, LAUNCH, SYNC, EVENT_SYNC, MALLOC, FREE, MEMSET, KINDS };

extern "C" {
long long pretend_counts[KINDS];
void (*pretend_hook)(int kind, const char* what, long long size) = nullptr;

void pretend_event(int kind, const char* what, long long size) {
  pretend_counts[kind]++;
  if (pretend_hook) pretend_hook(kind, what, size);
}
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------------------------------

struct Block {
  size_t size;
  int device;
};
static std::mutex memory_mutex;
static std::map<const char*, Block> blocks;   // device memory
static std::map<const char*, Block> pinned;   // host memory that cudaHostAlloc gave
static std::map<int, size_t> used;            // bytes, by device

// The block in which an address lies, or null.
static const std::pair<const char* const, Block>* find(const std::map<const char*, Block>& where, const void* address) {
  auto next = where.upper_bound(static_cast<const char*>(address));
  if (next == where.begin()) return nullptr;
  auto block = std::prev(next);
  return address < block->first + block->second.size ? &*block : nullptr;
}

static bool is_device(const void* address) {
  std::lock_guard<std::mutex> lock(memory_mutex);
  return find(blocks, address) != nullptr;
}

// Whether all the bytes lie in one block of device memory.
extern "C" bool pretend_on_device(const void* address, size_t size) {
  std::lock_guard<std::mutex> lock(memory_mutex);
  auto block = find(blocks, address);
  return block && static_cast<const char*>(address) + size <= block->first + block->second.size;
}

static void* allocate(size_t size) { return aligned_alloc(512, (size + 511) / 512 * 512); }

static cudaError_t copy(void* to, const void* from, size_t size, cudaMemcpyKind kind, const char* what) {
  if (size == 0) return cudaSuccess;
  bool to_device = is_device(to), from_device = is_device(from);
  if ((to_device && !pretend_on_device(to, size)) || (from_device && !pretend_on_device(from, size)))
    return cudaErrorInvalidValue;
  if (kind != cudaMemcpyDefault) {
    bool wants_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool wants_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (to_device != wants_to || from_device != wants_from) return cudaErrorInvalidValue;
  }
  memmove(to, from, size);
  pretend_event(to_device ? (from_device ? D2D : H2D) : (from_device ? D2H : H2H), what, (long long)size);
  return cudaSuccess;
}

static cudaError_t fill(void* address, int value, size_t size, const char* what) {
  if (size == 0) return cudaSuccess;
  if (!pretend_on_device(address, size)) return cudaErrorInvalidValue;
  memset(address, value, size);
  pretend_event(MEMSET, what, (long long)size);
  return cudaSuccess;
}

extern "C" {

cudaError_t cudaMalloc(void** address, size_t size) {
  {
    std::lock_guard<std::mutex> lock(memory_mutex);
    if (used[current_device] + size > memory_size()) return cudaErrorMemoryAllocation;
    *address = allocate(size);
    if (!*address) return cudaErrorMemoryAllocation;
    memset(*address, 0xCD, size);  // real memory holds anything; a test shall not find the zeros it hoped for
    blocks[static_cast<char*>(*address)] = {size, current_device};
    used[current_device] += size;
  }
  pretend_event(MALLOC, "cudaMalloc", (long long)size);
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  if (!address) return cudaSuccess;
  size_t size;
  {
    std::lock_guard<std::mutex> lock(memory_mutex);
    auto block = blocks.find(static_cast<char*>(address));
    if (block == blocks.end()) return cudaErrorInvalidValue;
    size = block->second.size;
    used[block->second.device] -= size;
    blocks.erase(block);
    free(address);
  }
  pretend_event(FREE, "cudaFree", (long long)size);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** address, size_t size, unsigned) {
  std::lock_guard<std::mutex> lock(memory_mutex);
  *address = allocate(size);
  if (!*address) return cudaErrorMemoryAllocation;
  pinned[static_cast<char*>(*address)] = {size, current_device};
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* address) {
  std::lock_guard<std::mutex> lock(memory_mutex);
  if (address && !pinned.erase(static_cast<char*>(address))) return cudaErrorInvalidValue;
  free(address);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  std::lock_guard<std::mutex> lock(memory_mutex);
  *total = memory_size();
  *free = *total > used[current_device] ? *total - used[current_device] : 0;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  std::lock_guard<std::mutex> lock(memory_mutex);
  auto block = find(blocks, address), host = find(pinned, address);
  memset(attributes, 0, sizeof *attributes);
  attributes->type = block ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  attributes->device = block ? block->second.device : host ? host->second.device : cudaInvalidDeviceId;
  if (block) attributes->devicePointer = const_cast<void*>(address);
  else attributes->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  return copy(to, from, size, kind, "cudaMemcpy");
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
  return copy(to, from, size, kind, "cudaMemcpyAsync");
}
cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t size) {
  return copy(to, from, size, cudaMemcpyDeviceToDevice, "cudaMemcpyPeer");
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t) {
  return copy(to, from, size, cudaMemcpyDeviceToDevice, "cudaMemcpyPeerAsync");
}
cudaError_t cudaMemset(void* address, int value, size_t size) { return fill(address, value, size, "cudaMemset"); }
cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t) {
  return fill(address, value, size, "cudaMemsetAsync");
}

}  // extern "C"

// ---------------------------------------------------------------------------------------------------------------------
// Runtime: versions, errors, devices
// ---------------------------------------------------------------------------------------------------------------------

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    default: return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotSupported: return "the pretend GPU does not have this function";
    default: return "unknown error on the pretend GPU";
  }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return *count ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return device_count() ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  snprintf(id, size_t(length), "0000:%02x:00.0", device);
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = compute_capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = compute_capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 1; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "pretend device (host memory)");
  properties->major = compute_capability() / 10;
  properties->minor = compute_capability() % 10;
  properties->totalGlobalMem = memory_size();
  properties->multiProcessorCount = 1;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerBlock = 48 << 10;
  properties->regsPerBlock = 65536;
  properties->maxGridSize[0] = 0x7fffffff;
  return cudaSuccess;
}

}  // extern "C"

// ---------------------------------------------------------------------------------------------------------------------
// Runtime: streams and events. The time between two events is the host's: it says nothing about a GPU.
// ---------------------------------------------------------------------------------------------------------------------

struct CUevent_st {
  double milliseconds;
};
struct CUstream_st {
  unsigned flags;
};

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st{flags};
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  *flags = stream ? stream->flags : 0;
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned) {
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  pretend_event(SYNC, "cudaStreamSynchronize", 0);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  pretend_event(SYNC, "cudaDeviceSynchronize", 0);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{0};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  event->milliseconds = double(now.tv_sec) * 1e3 + double(now.tv_nsec) / 1e6;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  pretend_event(EVENT_SYNC, "cudaEventSynchronize", 0);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = float(end->milliseconds - start->milliseconds);
  return cudaSuccess;
}

}  // extern "C"

// ---------------------------------------------------------------------------------------------------------------------
// Running a kernel. Blocks run one after another. Within a block, one fiber runs thread after thread until one of them
// waits for others; that one keeps the fiber, and a further fiber goes on with the threads that have not begun. So a
// kernel without __syncthreads or shuffles needs one fiber, whatever its size.
// ---------------------------------------------------------------------------------------------------------------------

struct Index {
  unsigned x, y, z;
};

extern "C" {
Index pretend_threadIdx, pretend_blockIdx, pretend_blockDim, pretend_gridDim;  // what kernel.h calls threadIdx, ...

// Leaves one stack for another: keeps the registers that a function must keep, and where the old stack was. The C
// library's swapcontext() also asks the system for the signal mask, which would be most of the time of a reduction.
void pretend_switch(void** from, void* to);
asm(R"(
  .text
  .type pretend_switch, @function
pretend_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size pretend_switch, . - pretend_switch
)");
}

namespace {

const int MAX_THREADS = 1024;
const int WARP = 32;
const size_t STACK = 256 << 10;

enum Status { READY, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
  void* stack;  // where it goes on
  int thread;   // the one that it runs
};

std::mutex launch_mutex;  // one kernel at a time: all of the following belongs to it
void (*entry)(void**);
void** arguments;
int threads, begun;
Index index_of[MAX_THREADS];
Status status[MAX_THREADS];
Fiber* fiber_of[MAX_THREADS];
char slots[MAX_THREADS][16];
std::vector<Fiber*> idle;
Fiber* current;
void* scheduler;  // the stack of who launched

void leave() { pretend_switch(&current->stack, scheduler); }

void resume(Fiber* fiber) {
  current = fiber;
  pretend_threadIdx = index_of[fiber->thread];
  pretend_switch(&scheduler, fiber->stack);
}

void fiber_main() {
  for (;;) {
    while (begun < threads) {
      int thread = begun++;
      current->thread = thread;
      fiber_of[thread] = current;
      pretend_threadIdx = index_of[thread];
      entry(arguments);
      status[thread] = DONE;
      memset(slots[thread], 0, sizeof slots[thread]);  // who has ended has no vote
    }
    idle.push_back(current);
    leave();
  }
}

Fiber* new_fiber() {
  size_t guard = size_t(sysconf(_SC_PAGESIZE));
  char* memory = static_cast<char*>(
      mmap(nullptr, guard + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED) abort();
  mprotect(memory, guard, PROT_NONE);  // an overflow ends the process instead of writing elsewhere
  // As if it had left in pretend_switch: six registers, the address to return to, and one word, so that the stack is
  // aligned as at the beginning of a function.
  void** top = reinterpret_cast<void**>(memory + guard + STACK) - 8;
  top[6] = reinterpret_cast<void*>(fiber_main);
  return new Fiber{top, 0};
}

void wait(Status reason) {
  status[current->thread] = reason;
  leave();
}

// Lets the threads from `first` to `last` that wait for `reason` go on to their next wait, or to their end.
bool release(Status reason, int first, int last) {
  bool any = false;
  for (int i = first; i < last; i++) {
    if (status[i] != reason) continue;
    status[i] = READY;
    any = true;
  }
  for (int i = first; any && i < last; i++)
    if (status[i] == READY) resume(fiber_of[i]);
  return any;
}

void run_block() {
  begun = 0;
  for (int i = 0; i < threads; i++) status[i] = DONE;
  while (begun < threads) {
    if (idle.empty()) idle.push_back(new_fiber());
    Fiber* fiber = idle.back();
    idle.pop_back();
    resume(fiber);
  }
  // From here on, a thread that is not done waits.
  bool any = true;
  while (any) {
    any = false;
    for (int warp = 0; warp < threads; warp += WARP)
      any |= release(AT_WARP, warp, warp + WARP < threads ? warp + WARP : threads);
    if (!any) any = release(AT_BLOCK, 0, threads);
  }
}

void run(void (*kernel)(void**), void** parameters, Index grid, Index block) {
  std::lock_guard<std::mutex> lock(launch_mutex);
  entry = kernel;
  arguments = parameters;
  pretend_gridDim = grid;
  pretend_blockDim = block;
  threads = 0;
  for (unsigned z = 0; z < block.z; z++)
    for (unsigned y = 0; y < block.y; y++)
      for (unsigned x = 0; x < block.x; x++) index_of[threads++] = {x, y, z};
  Index& at = pretend_blockIdx;
  for (at.z = 0; at.z < grid.z; at.z++)
    for (at.y = 0; at.y < grid.y; at.y++)
      for (at.x = 0; at.x < grid.x; at.x++) run_block();
}

}  // namespace

extern "C" {

// What kernel.h calls.
void pretend_wait_for_block() { wait(AT_BLOCK); }
void pretend_wait_for_warp() { wait(AT_WARP); }
void* pretend_slot(int thread) { return slots[thread]; }

unsigned short pretend_half_from_float(float x) {
  _Float16 half = _Float16(x);
  unsigned short bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}
float pretend_float_from_half(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, sizeof half);
  return float(half);
}

}  // extern "C"

// ---------------------------------------------------------------------------------------------------------------------
// Driver. A module is what the compiler gave: NVRTC's image, whose launches are only counted, or a shared object from
// g++, which runs.
// ---------------------------------------------------------------------------------------------------------------------

struct CUmod_st {
  void* library;  // null for NVRTC's image
};
struct CUfunc_st {
  std::string name;
  void (*entry)(void**);
};

static CUcontext context = reinterpret_cast<CUcontext>(&context);
static std::string load_error = "unknown error on the pretend GPU";

extern "C" {

CUresult cuGetErrorName(CUresult error, const char** name) {
  switch (error) {
    case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case CUDA_ERROR_INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case CUDA_ERROR_NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    default: *name = "CUDA_ERROR_UNKNOWN";
  }
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  switch (error) {
    case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
    case CUDA_ERROR_NOT_FOUND: *text = "named symbol not found"; break;
    default: *text = load_error.c_str();
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* current) {
  *current = context;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current_device;
  return CUDA_SUCCESS;
}
CUresult cuStreamGetCtx(CUstream, CUcontext* current) {
  *current = context;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const Elf64_Ehdr* header = static_cast<const Elf64_Ehdr*>(image);
  if (memcmp(image, ELFMAG, SELFMAG) != 0) {
    load_error = "the image is not an ELF file";
    return CUDA_ERROR_INVALID_IMAGE;
  }
  void* library = nullptr;
  if (header->e_machine == EM_X86_64) {
    // dlopen() takes a file only. The section headers are the last thing in it and so tell its size.
    size_t size = header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
    const char* folder = getenv("TMPDIR");
    std::string path = std::string(folder && *folder ? folder : "/tmp") + "/pretend-kernel-XXXXXX";
    int file = mkstemp(&path[0]);
    bool written = file >= 0 && write(file, image, size) == ssize_t(size);
    if (file >= 0) close(file);
    if (written) library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) load_error = written ? dlerror() : "cannot write " + path;
    if (file >= 0) unlink(path.c_str());
    if (!library) return CUDA_ERROR_INVALID_IMAGE;
  }
  *module = new CUmod_st{library};
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }  // a function of it may still be in use

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  void* symbol = module->library ? dlsym(module->library, (std::string(name) + "__entry").c_str()) : nullptr;
  if (module->library && !symbol) return CUDA_ERROR_NOT_FOUND;
  *function = new CUfunc_st{name, reinterpret_cast<void (*)(void**)>(symbol)};
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned, CUstream, void** parameters, void**) {
  unsigned long long block = 1ULL * block_x * block_y * block_z;
  if (block == 0 || block > MAX_THREADS || !grid_x || !grid_y || !grid_z) return CUDA_ERROR_INVALID_VALUE;
  if (function->entry) run(function->entry, parameters, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z});
  pretend_event(LAUNCH, function->name.c_str(), (long long)(block * grid_x * grid_y * grid_z));
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? MAX_THREADS : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize, size_t, int) {
  *grid = 1;
  *block = 256;
  return CUDA_SUCCESS;
}

}  // extern "C"
