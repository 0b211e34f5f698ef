// The operators without the dispatcher, for plain CPU tensors: a call of torch.ops takes longer than a small
// convolution.
//
// Each function takes its op's tensors, the missing size (None for conv2d) and the geometry as a tuple. It returns the
// op's result, or None if a tensor is not one that it can read in place: the caller then goes through the dispatcher,
// which also has the words for what is wrong with it.
#include "direct.h"

#include "dlpack.h"
#include "operators.h"

#include <optional>

namespace torchconv {

namespace {

namespace py = pybind11;

// torch.Tensor and its exchange interface, both found once, at import. Without an interface of version 1, nothing can
// be read in place.
PyTypeObject* tensor_type = nullptr;
const dlpack::ExchangeAPI* api = nullptr;

void find_api() {
  py::object tensor = py::module_::import("torch").attr("Tensor");
  if (py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    const auto capsule = tensor.attr("__dlpack_c_exchange_api__").cast<py::capsule>();
    const auto* found = capsule.get_pointer<dlpack::ExchangeAPI>();
    if (found->major == 1 && found->tensor_from_py_object) api = found;
  }
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.release().ptr());
}

std::optional<Dtype> dtype_of(const dlpack::DataType& type) {
  if (type.lanes != 1) return std::nullopt;
  if (type.code == dlpack::floating && type.bits == 64) return Dtype::float64;
  if (type.code == dlpack::floating && type.bits == 32) return Dtype::float32;
  if (type.code == dlpack::floating && type.bits == 16) return Dtype::float16;
  if (type.code == dlpack::bfloat && type.bits == 16) return Dtype::bfloat16;
  return std::nullopt;
}

// The tensors of one call: readable in place and of one dtype, or else not `ok`.
class Operands {
 public:
  View add(py::handle object) {
    dlpack::Tensor tensor{};
    if (!api || !PyObject_TypeCheck(object.ptr(), tensor_type) ||
        api->tensor_from_py_object(object.ptr(), &tensor) != 0) {
      PyErr_Clear();
      ok = false;
      return {};
    }
    const std::optional<Dtype> type = dtype_of(tensor.dtype);
    // A tensor without data of its own (empty, or one of torch's symbolic zeros) has a null pointer.
    ok = ok && tensor.device.type == dlpack::cpu && type && tensor.data && (first || *type == dtype);
    if (type) dtype = *type;
    first = false;
    return {static_cast<char*>(tensor.data) + tensor.byte_offset, tensor.ndim, tensor.shape, tensor.strides};
  }

  bool ok = true;
  Dtype dtype{};

 private:
  bool first = true;
};

int64_t integer(PyObject* object) {
  const int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

Sizes sizes(PyObject* sequence) {
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(sequence, "expected a sequence of ints"));
  if (!items) throw py::error_already_set();
  Sizes values(PySequence_Fast_GET_SIZE(items.ptr()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = integer(PySequence_Fast_GET_ITEM(items.ptr(), i));
  return values;
}

// (stride, padding, dilation, groups, implementation or None)
struct Arguments {
  explicit Arguments(const py::tuple& t)
      : stride(sizes(get(t, 0))), padding(sizes(get(t, 1))), dilation(sizes(get(t, 2))), groups(integer(get(t, 3))) {
    const py::handle name = get(t, 4);
    if (!name.is_none()) implementation = name.cast<std::string>();
  }

  Geometry geometry() const { return {stride, padding, dilation, groups}; }

  Sizes stride, padding, dilation;
  int64_t groups;
  std::string implementation;

 private:
  static PyObject* get(const py::tuple& t, Py_ssize_t i) {
    if (t.size() != 5) throw py::value_error("a geometry has 5 parts, but got " + std::to_string(t.size()));
    return PyTuple_GET_ITEM(t.ptr(), i);
  }
};

// Without the GIL from `begin` to the end of the scope.
class NoGil {
 public:
  void begin() { thread_ = PyEval_SaveThread(); }
  ~NoGil() {
    if (thread_) PyEval_RestoreThread(thread_);
  }

 private:
  PyThreadState* thread_ = nullptr;
};

// The result is made by torch itself, so that it is a tensor like any other. From there on runs the kernel, without the
// GIL.
template <class Run>
py::object with_result(py::handle like, const Run& run) {
  py::object result;
  {
    NoGil no_gil;
    run([&](const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride) {
      result = like.attr("new_empty_strided")(py::make_tuple(size[0], size[1], size[2], size[3]),
                                              py::make_tuple(stride[0], stride[1], stride[2], stride[3]));
      void* data = Operands().add(result).data;
      no_gil.begin();
      return data;
    });
  }
  return result;
}

py::object conv2d_bias_act(py::handle x_, py::handle w_, py::handle bias_, const py::tuple& rest,
                           const std::string& activation, double slope) {
  Operands operands;
  const View x = operands.add(x_), w = operands.add(w_), bias = bias_.is_none() ? View{} : operands.add(bias_);
  if (!operands.ok) return py::none();
  const Arguments arguments(rest);
  return with_result(x_, [&](const Allocate& allocate) {
    conv2d(operands.dtype, x, w, bias.data ? &bias : nullptr, arguments.geometry(), activation, slope,
           arguments.implementation, allocate);
  });
}

py::object conv2d_(py::handle x, py::handle w, py::handle /* no size is missing */, const py::tuple& rest) {
  return conv2d_bias_act(x, w, py::none(), rest, "none", 0);
}

template <auto op>
py::object gradient(py::handle a_, py::handle b_, py::handle size, const py::tuple& rest) {
  Operands operands;
  const View a = operands.add(a_), b = operands.add(b_);
  if (!operands.ok) return py::none();
  const Arguments arguments(rest);
  return with_result(a_, [&](const Allocate& allocate) {
    op(operands.dtype, a, b, sizes(size.ptr()), arguments.geometry(), arguments.implementation, allocate);
  });
}

}  // namespace

void bind_direct(py::module_& module) {
  find_api();
  module.def("conv2d", &conv2d_);
  module.def("conv2d_bias_act", &conv2d_bias_act);
  module.def("conv2d_grad_input", &gradient<conv2d_grad_input>);
  module.def("conv2d_grad_weight", &gradient<conv2d_grad_weight>);
}

}  // namespace torchconv
