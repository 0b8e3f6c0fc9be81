// A CUDA driver and runtime without a GPU. Device memory is host memory, and everything happens at
// once.
//
// By default a launch does nothing, and device memory is not filled: that is for what a call costs
// the host, and how many operations it has. With `standin_on_launch` set, each launch is handed
// out, and with an arena device addresses are those of an emulator. Copies to the host can be
// logged and played back.

#include <cuda_runtime.h>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>
#undef cudaGetDeviceProperties
#undef cudaMemcpyAsync

typedef int (*OnLaunch)(const char* name, void* module, const unsigned* geometry, void** arguments);
typedef void (*OnLoad)(void* module, const char* image);
struct Function {
    std::string name;
    void* module;
    long launches;
};

// As NAMES of __init__.py.
// clang-format off
enum { LAUNCH, MEMSET, H2D, D2H, D2D, GEMM, SORT, CUB, MALLOC, FREE, STREAM_SYNC, DEVICE_SYNC,
       EVENT_SYNC, EVENT_RECORD, STREAM_WAIT, PAGEABLE, COUNTERS };
// clang-format on
enum { OFF, RECORD, REPLAY };

static std::vector<Function*> functions;
static std::map<char*, size_t> pinned;
static std::vector<std::string> copies;  // the log of copies to the host
static size_t next_copy = 0;
static int log_mode = OFF;
static long wrong_copy = -1, wrong_bytes = 0;  // the first that was not as logged
static char* arena = nullptr;                  // its host address; null: none
static size_t arena_base = 0, arena_bytes = 0, arena_used = 0;
static std::map<void*, size_t> blocks;
static std::multimap<size_t, void*> unused;
static thread_local int device = 0;
static size_t handles = 0x1000;

static char* host(const void* p) {
    size_t a = (size_t)p;
    return arena && a >= arena_base && a < arena_base + arena_bytes ? arena + (a - arena_base)
                                                                    : (char*)p;
}

extern "C" {
long standin_counts[COUNTERS];
OnLaunch standin_on_launch = nullptr;
OnLoad standin_on_load = nullptr;

void standin_arena(char* memory, size_t base, size_t bytes) {
    arena = memory;
    arena_base = base;
    arena_bytes = bytes;
}
long standin_function_count() { return functions.size(); }
const char* standin_function_name(long i) { return functions[i]->name.c_str(); }
long standin_function_launches(long i) { return functions[i]->launches; }
void standin_log(int mode) {
    log_mode = mode;
    next_copy = 0;
    wrong_copy = -1;
    if (mode == RECORD) copies.clear();
}
void standin_log_add(const char* bytes, size_t n) { copies.emplace_back(bytes, n); }
long standin_log_count() { return copies.size(); }
long standin_log_next() { return next_copy; }
size_t standin_log_bytes(long i) { return copies[i].size(); }
const char* standin_log_data(long i) { return copies[i].data(); }
long standin_log_wrong(long* bytes) {
    *bytes = wrong_bytes;
    return wrong_copy;
}

// ---- driver
// NVRTC looks for a driver: told that there is no device, it does without. CuPy calls neither.
int cuInit(unsigned) { return 100; }
int cuGetExportTable(void** table, const void*) {
    *table = nullptr;
    return 500;
}
int cuDriverGetVersion(int* v) {
    *v = 13000;
    return 0;
}
int cuGetErrorName(int, const char** s) {
    *s = "stand-in";
    return 0;
}
int cuGetErrorString(int, const char** s) {
    *s = "the stand-in has no such thing, or failed";
    return 0;
}
int cuCtxGetCurrent(void** c) {
    *c = (void*)1;
    return 0;
}
int cuCtxSetCurrent(void*) { return 0; }
int cuCtxGetDevice(int* d) {
    *d = device;
    return 0;
}
int cuStreamGetCtx(void*, void** c) {
    *c = (void*)1;
    return 0;
}
int cuModuleLoadData(void** m, const void* image) {
    *m = (void*)(handles += 16);
    if (standin_on_load) standin_on_load(*m, (const char*)image);
    return 0;
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(Function** f, void* m, const char* name) {
    functions.push_back(*f = new Function{name, m, 0});
    return 0;
}
int cuModuleGetFunctionCount(unsigned* n, void*) {
    *n = 0;
    return 0;
}
int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void*, void** arguments, void**) {
    standin_counts[LAUNCH]++;
    f->launches++;
    if (!standin_on_launch) return 0;
    unsigned geometry[] = {gx, gy, gz, bx, by, bz, shared};
    return standin_on_launch(f->name.c_str(), f->module, geometry, arguments);
}
int cuFuncGetAttribute(int* v, int, void*) {
    *v = 0;
    return 0;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int, size_t) {
    *n = 4;
    return 0;
}

// ---- runtime: devices
#define OK return cudaSuccess
cudaError_t cudaGetDevice(int* d) {
    *d = device;
    OK;
}
cudaError_t cudaSetDevice(int d) {
    if (d) return cudaErrorInvalidDevice;
    OK;
}
cudaError_t cudaGetDeviceCount(int* n) {
    *n = 1;
    OK;
}
cudaError_t cudaDriverGetVersion(int* v) {
    *v = 13000;
    OK;
}
cudaError_t cudaRuntimeGetVersion(int* v) {
    *v = 13000;
    OK;
}
const char* cudaGetErrorName(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "stand-in";
}
const char* cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory"
                                          : "the stand-in has no such thing, or failed";
}
cudaError_t cudaGetLastError() { OK; }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr attribute, int) {
    static const std::map<int, int> of_an_h100 = {
        {cudaDevAttrComputeCapabilityMajor, 9},
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxBlockDimX, 1024},
        {cudaDevAttrMaxBlockDimY, 1024},
        {cudaDevAttrMaxBlockDimZ, 64},
        {cudaDevAttrMaxGridDimX, 2147483647},
        {cudaDevAttrMaxGridDimY, 65535},
        {cudaDevAttrMaxGridDimZ, 65535},
        {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMaxRegistersPerBlock, 65536},
        {cudaDevAttrClockRate, 1980000},
        {cudaDevAttrMemoryClockRate, 2619000},
        {cudaDevAttrGlobalMemoryBusWidth, 5120},
        {cudaDevAttrMultiProcessorCount, 132},
        {cudaDevAttrL2CacheSize, 50 << 20},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
        {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
        {cudaDevAttrSingleToDoublePrecisionPerfRatio, 2}};
    auto found = of_an_h100.find(attribute);
    *v = found == of_an_h100.end() ? 0 : found->second;
    OK;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in for an H100");
    p->major = 9;
    p->multiProcessorCount = 132;
    p->warpSize = 32;
    p->totalGlobalMem = 80ull << 30;
    p->sharedMemPerBlock = 49152;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = 65536;
    OK;
}
cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int) {
    strncpy(s, "0000:00:00.0", n);
    OK;
}
cudaError_t cudaDeviceGetLimit(size_t* v, cudaLimit) {
    *v = 1024;
    OK;
}
cudaError_t cudaDeviceSynchronize() {
    standin_counts[DEVICE_SYNC]++;
    OK;
}

// ---- runtime: memory
cudaError_t cudaMalloc(void** p, size_t n) {
    standin_counts[MALLOC]++;
    n = (n + 511) / 512 * 512;
    auto same = unused.find(n);
    if (same != unused.end()) {
        *p = same->second;
        unused.erase(same);
        OK;
    }
    if (arena) {
        if (arena_used + n + 512 > arena_bytes) return cudaErrorMemoryAllocation;
        *p = (void*)(arena_base + arena_used);
        arena_used += n + 512;
    } else if (posix_memalign(p, 512, n + 512))
        return cudaErrorMemoryAllocation;
    blocks[*p] = n;
    OK;
}
cudaError_t cudaFree(void* p) {
    standin_counts[FREE]++;
    if (p) unused.emplace(blocks[p], p);
    OK;
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
    if (posix_memalign(p, 4096, n + 1)) return cudaErrorMemoryAllocation;
    pinned[(char*)*p] = n;
    OK;
}
cudaError_t cudaFreeHost(void* p) {
    pinned.erase((char*)p);
    free(p);
    OK;
}
static bool pageable(const void* p) {
    auto after = pinned.upper_bound((char*)p);
    if (after == pinned.begin()) return true;
    --after;
    return (char*)p >= after->first + after->second;
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind kind, cudaStream_t) {
    if (kind == cudaMemcpyDeviceToHost) {
        standin_counts[D2H]++;
        if (pageable(d)) standin_counts[PAGEABLE]++;
        if (log_mode == REPLAY) {
            if (next_copy >= copies.size() || copies[next_copy].size() != n) {
                if (wrong_copy < 0) {
                    wrong_copy = next_copy;
                    wrong_bytes = n;
                }
                return cudaErrorUnknown;
            }
            memcpy(d, copies[next_copy++].data(), n);
            OK;
        }
        memcpy(d, host(s), n);
        if (log_mode == RECORD) copies.emplace_back((char*)d, n);
        OK;
    }
    standin_counts[kind == cudaMemcpyHostToDevice ? H2D : D2D]++;
    if (arena || kind == cudaMemcpyHostToDevice) memmove(host(d), host(s), n);
    OK;
}
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(d, s, n, kind, 0);
}
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t) {
    standin_counts[MEMSET]++;
    if (arena) memset(host(d), v, n);
    OK;
}
cudaError_t cudaMemset(void* d, int v, size_t n) { return cudaMemsetAsync(d, v, n, 0); }
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
    *t = 80ull << 30;
    *f = 79ull << 30;
    OK;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeDevice;
    a->devicePointer = (void*)p;
    OK;
}

// ---- runtime: streams and events
cudaError_t cudaStreamCreate(cudaStream_t* s) {
    *s = (cudaStream_t)(handles += 16);
    OK;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
    return cudaStreamCreate(s);
}
cudaError_t cudaStreamDestroy(cudaStream_t) { OK; }
cudaError_t cudaStreamQuery(cudaStream_t) { OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    standin_counts[STREAM_SYNC]++;
    OK;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    standin_counts[STREAM_WAIT]++;
    OK;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* s) {
    *s = cudaStreamCaptureStatusNone;
    OK;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) {
    *e = (cudaEvent_t)(handles += 16);
    OK;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t) { OK; }
cudaError_t cudaEventQuery(cudaEvent_t) { OK; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    standin_counts[EVENT_RECORD]++;
    OK;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    standin_counts[EVENT_SYNC]++;
    OK;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
    *ms = 0;
    OK;
}
}
