// The extension module `_cuda`: memory, streams and launches by the CUDA runtime, for users without CuPy.
//
// Built by nvcc where XPKERN_CUDA=1. The runtime is linked statically and finds the driver when it is first called, so
// that the module can be imported where there is none. Kernels come as the fat binary that Python hands over. What each
// class does is said in xpkern/engine/_cuda.pyi.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

struct OutOfMemory : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void check(cudaError_t code) {
    if (code == cudaSuccess) return;
    const std::string text = std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
    if (code != cudaErrorMemoryAllocation) throw Failure(text);
    cudaGetLastError();  // out of memory does no harm to what follows
    throw OutOfMemory(text);
}

// Bytes on the GPU.
class Memory {
  public:
    explicit Memory(size_t size) { check(cudaMalloc(&data_, size)); }
    ~Memory() { cudaFree(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uintptr_t pointer() const { return reinterpret_cast<uintptr_t>(data_); }

  private:
    void* data_ = nullptr;
};

// Pinned bytes of the host.
class HostMemory {
  public:
    explicit HostMemory(size_t size) : size_(size) { check(cudaMallocHost(&data_, size)); }
    ~HostMemory() { cudaFreeHost(data_); }
    HostMemory(const HostMemory&) = delete;
    HostMemory& operator=(const HostMemory&) = delete;
    py::buffer_info buffer() { return {static_cast<uint8_t*>(data_), static_cast<py::ssize_t>(size_)}; }

  private:
    void* data_ = nullptr;
    size_t size_;
};

class Stream {
  public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }
    void synchronise() const {
        const py::gil_scoped_release release;
        check(cudaStreamSynchronize(stream_));
    }

  private:
    cudaStream_t stream_ = nullptr;
};

// What a stream was told, as one unit.
class Graph {
  public:
    explicit Graph(cudaGraph_t graph) {
        const cudaError_t code = cudaGraphInstantiate(&executable_, graph, 0);
        cudaGraphDestroy(graph);
        check(code);
    }
    ~Graph() { cudaGraphExecDestroy(executable_); }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    void launch(const Stream& stream) const { check(cudaGraphLaunch(executable_, stream.get())); }

  private:
    cudaGraphExec_t executable_ = nullptr;
};

class Event {
  public:
    Event() { check(cudaEventCreate(&event_)); }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    void record(const Stream& stream) const { check(cudaEventRecord(event_, stream.get())); }
    float seconds_since(const Event& begin) const {
        float milliseconds = 0;
        const py::gil_scoped_release release;
        check(cudaEventSynchronize(event_));
        check(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
        return 1e-3F * milliseconds;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

// The kernels of a fat binary.
class Kernels {
  public:
    explicit Kernels(const py::bytes& image) : image_(image) {
        check(cudaLibraryLoadData(&library_, image_.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
    }
    ~Kernels() { cudaLibraryUnload(library_); }
    Kernels(const Kernels&) = delete;
    Kernels& operator=(const Kernels&) = delete;

    void launch(const std::string& name, unsigned grid, unsigned block, const std::vector<py::buffer>& parameters,
                const Stream& stream, size_t shared) {
        std::vector<py::buffer_info> values;
        std::vector<void*> pointers;
        for (const py::buffer& parameter : parameters) values.push_back(parameter.request());
        for (const py::buffer_info& value : values) pointers.push_back(value.ptr);
        const cudaKernel_t kernel = find(name);
        if (shared > SHARED_WITHOUT_ASKING) {
            check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
        }
        check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid), dim3(block), pointers.data(), shared,
                               stream.get()));
    }

    py::dict attributes(const std::string& name) {
        cudaFuncAttributes found{};
        check(cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(find(name))));
        py::dict result;
        result["registers"] = found.numRegs;
        result["local_bytes"] = found.localSizeBytes;
        result["shared_bytes"] = found.sharedSizeBytes;
        result["threads"] = found.maxThreadsPerBlock;
        return result;
    }

  private:
    static constexpr size_t SHARED_WITHOUT_ASKING = 48 * 1024;

    cudaKernel_t find(const std::string& name) {
        const auto known = kernels_.find(name);
        if (known != kernels_.end()) return known->second;
        cudaKernel_t kernel = nullptr;
        check(cudaLibraryGetKernel(&kernel, library_, name.c_str()));
        return kernels_[name] = kernel;
    }

    std::string image_;  // the library may read it later
    cudaLibrary_t library_ = nullptr;
    std::map<std::string, cudaKernel_t> kernels_;
};

void require_contiguous(const py::buffer_info& info) {
    py::ssize_t stride = info.itemsize;
    for (py::ssize_t axis = info.ndim - 1; axis >= 0; --axis) {
        if (info.shape[axis] > 1 && info.strides[axis] != stride)
            throw std::invalid_argument("the array is not contiguous");
        stride *= info.shape[axis];
    }
}

void to_device(uintptr_t pointer, const py::buffer& array, const Stream& stream) {
    const py::buffer_info info = array.request();
    require_contiguous(info);
    check(cudaMemcpyAsync(reinterpret_cast<void*>(pointer), info.ptr, static_cast<size_t>(info.size * info.itemsize),
                          cudaMemcpyHostToDevice, stream.get()));
}

void to_host(const py::buffer& array, uintptr_t pointer, const Stream& stream) {
    const py::buffer_info info = array.request(true);
    require_contiguous(info);
    check(cudaMemcpyAsync(info.ptr, reinterpret_cast<const void*>(pointer),
                          static_cast<size_t>(info.size * info.itemsize), cudaMemcpyDeviceToHost, stream.get()));
}

void clear(uintptr_t pointer, size_t size, const Stream& stream) {
    check(cudaMemsetAsync(reinterpret_cast<void*>(pointer), 0, size, stream.get()));
}

bool is_pinned(uintptr_t pointer) {
    cudaPointerAttributes found{};
    check(cudaPointerGetAttributes(&found, reinterpret_cast<const void*>(pointer)));
    return found.type == cudaMemoryTypeHost;
}

// What is queued by work(stream) becomes a graph and is not run.
std::unique_ptr<Graph> record(const py::function& work, Stream& stream) {
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
        work(py::cast(&stream, py::return_value_policy::reference));
    } catch (...) {
        cudaStreamEndCapture(stream.get(), &graph);
        if (graph != nullptr) cudaGraphDestroy(graph);
        throw;
    }
    check(cudaStreamEndCapture(stream.get(), &graph));
    return std::make_unique<Graph>(graph);
}

int device_count() {
    int count = 0;
    check(cudaGetDeviceCount(&count));
    return count;
}

py::dict facts() {
    int device = 0, driver = 0;
    check(cudaGetDevice(&device));
    check(cudaDriverGetVersion(&driver));
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device));
    py::dict result;
    result["name"] = std::string(properties.name);
    result["compute_capability"] = std::to_string(properties.major) + "." + std::to_string(properties.minor);
    result["processors"] = properties.multiProcessorCount;
    result["memory"] = properties.totalGlobalMem;
    result["shared_memory"] = properties.sharedMemPerBlockOptin;
    result["driver"] = driver;
    return result;
}

size_t free_memory() {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total));
    return free;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "Memory, streams and kernels of a GPU.";
    py::register_exception<OutOfMemory>(module, "OutOfMemory", PyExc_MemoryError);
    py::register_exception<Failure>(module, "Failure", PyExc_RuntimeError);
    module.attr("toolkit") = CUDART_VERSION;
    py::class_<Memory>(module, "Memory").def(py::init<size_t>()).def_property_readonly("pointer", &Memory::pointer);
    py::class_<HostMemory>(module, "HostMemory", py::buffer_protocol())
        .def(py::init<size_t>())
        .def_buffer(&HostMemory::buffer);
    py::class_<Event> event(module, "Event");
    py::class_<Stream>(module, "Stream").def(py::init<>()).def("synchronise", &Stream::synchronise);
    py::class_<Graph>(module, "Graph").def("launch", &Graph::launch, py::arg("stream"));
    event.def(py::init<>())
        .def("record", &Event::record, py::arg("stream"))
        .def("seconds_since", &Event::seconds_since, py::arg("begin"));
    py::class_<Kernels>(module, "Kernels")
        .def(py::init<const py::bytes&>(), py::arg("image"))
        .def("launch", &Kernels::launch, py::arg("name"), py::arg("grid"), py::arg("block"), py::arg("parameters"),
             py::arg("stream"), py::arg("shared") = 0)
        .def("attributes", &Kernels::attributes, py::arg("name"));
    module.def("to_device", &to_device, py::arg("pointer"), py::arg("array"), py::arg("stream"));
    module.def("to_host", &to_host, py::arg("array"), py::arg("pointer"), py::arg("stream"));
    module.def("clear", &clear, py::arg("pointer"), py::arg("size"), py::arg("stream"));
    module.def("is_pinned", &is_pinned, py::arg("pointer"));
    module.def("record", &record, py::arg("work"), py::arg("stream"));
    module.def("device_count", &device_count);
    module.def("facts", &facts);
    module.def("free_memory", &free_memory);
}
