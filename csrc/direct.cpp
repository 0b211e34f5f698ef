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
PyObject* new_empty_strided = nullptr;  // the name of the method
const dlpack::ExchangeAPI* api = nullptr;

void find_api() {
  py::object tensor = py::module_::import("torch").attr("Tensor");
  if (py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    const auto capsule = tensor.attr("__dlpack_c_exchange_api__").cast<py::capsule>();
    const auto* found = capsule.get_pointer<dlpack::ExchangeAPI>();
    if (found->major == 1 && found->tensor_from_py_object) api = found;
  }
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.release().ptr());
  new_empty_strided = PyUnicode_InternFromString("new_empty_strided");
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
  View add(PyObject* object) {
    dlpack::Tensor tensor{};
    if (!api || !PyObject_TypeCheck(object, tensor_type) || api->tensor_from_py_object(object, &tensor) != 0) {
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

std::string text(PyObject* object) {
  Py_ssize_t size = 0;
  const char* characters = PyUnicode_AsUTF8AndSize(object, &size);
  if (!characters) throw py::error_already_set();
  return std::string(characters, size);
}

// (stride, padding, dilation, groups, implementation or None)
struct Arguments {
  explicit Arguments(PyObject* tuple) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 5) throw py::type_error("a geometry is a tuple of 5");
    stride = sizes(PyTuple_GET_ITEM(tuple, 0));
    padding = sizes(PyTuple_GET_ITEM(tuple, 1));
    dilation = sizes(PyTuple_GET_ITEM(tuple, 2));
    groups = integer(PyTuple_GET_ITEM(tuple, 3));
    if (PyObject* name = PyTuple_GET_ITEM(tuple, 4); name != Py_None) implementation = text(name);
  }

  Geometry geometry() const { return {stride, padding, dilation, groups}; }

  Sizes stride, padding, dilation;
  int64_t groups;
  std::string implementation;
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

// Made by torch itself, so that it is a tensor like any other.
py::object empty_like(PyObject* like, const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride) {
  const py::tuple sizes = py::make_tuple(size[0], size[1], size[2], size[3]);
  const py::tuple strides = py::make_tuple(stride[0], stride[1], stride[2], stride[3]);
  PyObject* arguments[] = {like, sizes.ptr(), strides.ptr()};
  PyObject* result = PyObject_VectorcallMethod(new_empty_strided, arguments, 3, nullptr);
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// Once the result is allocated, the kernel runs without the GIL.
template <class Run>
py::object with_result(PyObject* like, const Run& run) {
  py::object result;
  {
    NoGil no_gil;
    run([&](const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride) {
      result = empty_like(like, size, stride);
      const View view = Operands().add(result.ptr());
      if (view.dim != 4) throw std::runtime_error("cannot read a new tensor in place");
      no_gil.begin();
      return view.data;
    });
  }
  return result;
}

py::object forward(PyObject* x_, PyObject* w_, PyObject* bias_, PyObject* geometry, const std::string& activation,
                   double slope) {
  Operands operands;
  const View x = operands.add(x_), w = operands.add(w_), bias = bias_ == Py_None ? View{} : operands.add(bias_);
  if (!operands.ok) return py::none();
  const Arguments arguments(geometry);
  return with_result(x_, [&](const Allocate& allocate) {
    conv2d(operands.dtype, x, w, bias.data ? &bias : nullptr, arguments.geometry(), activation, slope,
           arguments.implementation, allocate);
  });
}

template <auto op>
py::object gradient(PyObject* const* arguments) {
  Operands operands;
  const View a = operands.add(arguments[0]), b = operands.add(arguments[1]);
  if (!operands.ok) return py::none();
  const Sizes size = sizes(arguments[2]);
  const Arguments rest(arguments[3]);
  return with_result(arguments[0], [&](const Allocate& allocate) {
    op(operands.dtype, a, b, size, rest.geometry(), rest.implementation, allocate);
  });
}

}  // namespace

bool is_batch(PyObject* x) {
  Operands operands;
  return operands.add(x).dim == 4 && operands.ok;
}

py::object direct_conv2d_bias_act(PyObject* const* a) {
  const double slope = PyFloat_AsDouble(a[5]);
  if (slope == -1 && PyErr_Occurred()) throw py::error_already_set();
  return forward(a[0], a[1], a[2], a[3], text(a[4]), slope);
}

py::object direct_conv2d(PyObject* const* a) { return forward(a[0], a[1], Py_None, a[3], "none", 0); }

void bind_direct(py::module_& module) {
  find_api();
  static PyMethodDef methods[] = {
      fast_method<4, direct_conv2d>("conv2d"),
      fast_method<6, direct_conv2d_bias_act>("conv2d_bias_act"),
      fast_method<4, gradient<conv2d_grad_input>>("conv2d_grad_input"),
      fast_method<4, gradient<conv2d_grad_weight>>("conv2d_grad_weight"),
      {nullptr, nullptr, 0, nullptr},
  };
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace torchconv
