// Stands in for the CUDA runtime under zokern._cuda: two devices without memory, an error that stays until it is read, and launches that
// are handed on.
#include <cstddef>
#include <map>
#include <string>
#include <vector>

struct dim3 { unsigned x, y, z; };
struct Configuration { dim3 blocks, threads; size_t shared; void* stream; };
using OnLaunch = int (*)(const char* kernel, unsigned blocks, unsigned threads, void** arguments, int device, void* stream);

static int current = 0, error = 0;
static OnLaunch on_launch = nullptr;
static std::vector<Configuration> pushed;

static std::map<const void*, std::string>& kernels() {  // filled before this file's own statics are made
    static std::map<const void*, std::string> names;
    return names;
}

extern "C" {
int fake_device() { return current; }
void fake_on_launch(OnLaunch function) { on_launch = function; }

int cudaGetDevice(int* device) { return *device = current, 0; }
int cudaSetDevice(int device) { return device < 0 || device > 1 ? error = 101 : (current = device, 0); }
int cudaGetLastError() {
    const int last = error;
    return error = 0, last;
}
const char* cudaGetErrorString(int code) {
    static std::string text;
    return (text = "error " + std::to_string(code)).c_str();
}

void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
    kernels()[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 blocks, dim3 threads, size_t shared, void* stream) {
    return pushed.push_back({blocks, threads, shared, stream}), 0;
}
int __cudaPopCallConfiguration(dim3* blocks, dim3* threads, size_t* shared, void** stream) {
    const Configuration c = pushed.back();
    return pushed.pop_back(), *blocks = c.blocks, *threads = c.threads, *shared = c.shared, *stream = c.stream, 0;
}
int cudaLaunchKernel(const void* kernel, dim3 blocks, dim3 threads, void** arguments, size_t, void* stream) {
    const int code = on_launch(kernels()[kernel].c_str(), blocks.x, threads.x, arguments, current, stream);
    return code ? error = code : 0;
}
int __cudaGetKernel(void** kernel, const void* host) { return *kernel = const_cast<void*>(host), 0; }  // CUDA 13's names
int __cudaLaunchKernel(void* kernel, dim3 blocks, dim3 threads, void** arguments, size_t shared, void* stream) {
    return cudaLaunchKernel(kernel, blocks, threads, arguments, shared, stream);
}
}
