// The operators without torch's dispatcher, for plain CPU tensors: a call of torch.ops takes longer than a small
// convolution.
//
// conv2d, conv2d_bias_act, conv2d_grad_input and conv2d_grad_weight take the tensors of the operator, the size that its
// result needs (None for conv2d) and the geometry as one tuple. call_conv2d is a whole call of torchconv.conv2d,
// autograd included. Each returns None where it does not apply: the caller then takes the way through the dispatcher,
// which also raises the errors for bad operands.
#include "fast_path.h"

#include "../inline_vector.h"
#include "../operators.h"
#include "dlpack.h"

#include <atomic>
#include <optional>
#include <vector>

namespace torchconv {

namespace {

namespace py = pybind11;

// Objects of torch and of autograd.py. Written during the import of torchconv only.
struct Torch {
  PyTypeObject* tensor = nullptr;
  PyObject* parameter = nullptr;
  const dlpack::ExchangeAPI* api = nullptr;  // null: no tensor can be read in place
  std::vector<PyObject*> observers;          // functions, each true while something but autograd observes operators
  PyObject *is_grad_enabled = nullptr, *is_forward_ad = nullptr;
  PyObject *apply = nullptr, *apply_bias_act = nullptr;  // record a graph
  PyObject* registered_kernels = nullptr;                // a set of "namespace/operator/dispatch key", or null
  Py_ssize_t own_kernels = 0;                            // those among them that torchconv has registered itself
  PyObject *new_empty_strided = nullptr, *is_neg = nullptr, *requires_grad = nullptr;  // names of attributes
} torch;

std::atomic<bool> enabled{true};

py::object steal(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

bool truth(PyObject* owned) {
  const int value = PyObject_IsTrue(steal(owned).ptr());
  if (value < 0) throw py::error_already_set();
  return value == 1;
}

std::string text(PyObject* object) {
  Py_ssize_t size = 0;
  const char* characters = PyUnicode_AsUTF8AndSize(object, &size);
  if (!characters) throw py::error_already_set();
  return std::string(characters, size);
}

// --- Does the fast path apply? --------------------------------------------------------------------------------------

Py_ssize_t count_kernels_of_torchconv() {
  Py_ssize_t count = 0;
  for (py::handle key : py::reinterpret_borrow<py::set>(torch.registered_kernels))
    count += py::isinstance<py::str>(key) && text(key.ptr()).starts_with("torchconv/");
  return count;
}

// Whether anyone but torchconv has registered a Python kernel for its operators. The set is searched again only after
// its size has changed.
bool has_foreign_kernels() {
  static std::atomic<Py_ssize_t> known_size{-1};
  static std::atomic<bool> found{false};
  if (!torch.registered_kernels) return false;
  const Py_ssize_t size = PySet_Size(torch.registered_kernels);
  if (size != known_size.load(std::memory_order_acquire)) {
    found = count_kernels_of_torchconv() > torch.own_kernels;
    known_size.store(size, std::memory_order_release);
  }
  return found;
}

// The one predicate: plain tensors (or None), and nothing but autograd that has to see the call.
bool is_plain(PyObject* const* tensors, Py_ssize_t count) {
  if (!enabled || has_foreign_kernels()) return false;
  for (PyObject* observer : torch.observers)
    if (truth(PyObject_CallNoArgs(observer))) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (tensors[i] == Py_None) continue;
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensors[i]));
    if (type != reinterpret_cast<PyObject*>(torch.tensor) && type != torch.parameter) return false;
    if (truth(PyObject_CallMethodNoArgs(tensors[i], torch.is_neg))) return false;
  }
  return true;
}

bool needs_graph(PyObject* const* tensors, Py_ssize_t count) {
  if (truth(PyObject_CallNoArgs(torch.is_grad_enabled)))
    for (Py_ssize_t i = 0; i < count; ++i)
      if (tensors[i] != Py_None && truth(PyObject_GetAttr(tensors[i], torch.requires_grad))) return true;
  return truth(PyObject_CallNoArgs(torch.is_forward_ad));
}

// --- Tensors, by DLPack ---------------------------------------------------------------------------------------------

std::optional<Dtype> dtype_of(const dlpack::DataType& type) {
  if (type.lanes != 1) return std::nullopt;
  if (type.code == dlpack::floating && type.bits == 64) return Dtype::float64;
  if (type.code == dlpack::floating && type.bits == 32) return Dtype::float32;
  if (type.code == dlpack::floating && type.bits == 16) return Dtype::float16;
  if (type.code == dlpack::bfloat && type.bits == 16) return Dtype::bfloat16;
  return std::nullopt;
}

// The tensors of one call: CPU tensors of one dtype that can be read in place, or else not `ok`.
class Operands {
 public:
  View add(PyObject* object) {
    dlpack::Tensor tensor{};
    if (!torch.api || !PyObject_TypeCheck(object, torch.tensor) ||
        torch.api->tensor_from_py_object(object, &tensor) != 0) {
      PyErr_Clear();
      ok = false;
      return {};
    }
    const std::optional<Dtype> type = dtype_of(tensor.dtype);
    // A tensor without memory (empty, or one of torch's symbolic zeros) has a null pointer.
    ok = ok && tensor.device.type == dlpack::cpu && type && tensor.data && (first_ || *type == dtype);
    if (type) dtype = *type;
    first_ = false;
    return {static_cast<char*>(tensor.data) + tensor.byte_offset, tensor.ndim, tensor.shape, tensor.strides};
  }

  bool ok = true;
  Dtype dtype{};

 private:
  bool first_ = true;
};

// Allocated by torch itself, so that the result is a tensor like any other.
py::object empty_like(PyObject* like, const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& stride) {
  const py::tuple sizes = py::make_tuple(size[0], size[1], size[2], size[3]);
  const py::tuple strides = py::make_tuple(stride[0], stride[1], stride[2], stride[3]);
  PyObject* arguments[] = {like, sizes.ptr(), strides.ptr()};
  return steal(PyObject_VectorcallMethod(torch.new_empty_strided, arguments, 3, nullptr));
}

// Releases the GIL from `begin` to the end of the scope.
class NoGil {
 public:
  void begin() { thread_ = PyEval_SaveThread(); }
  ~NoGil() {
    if (thread_) PyEval_RestoreThread(thread_);
  }

 private:
  PyThreadState* thread_ = nullptr;
};

// run(allocate), which runs without the GIL once it has allocated the result; returns the result.
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

// --- Arguments ------------------------------------------------------------------------------------------------------

using Integers = InlineVector<int64_t, 4>;

Sizes view(const Integers& values) { return {values.data(), values.size()}; }

int64_t integer(PyObject* object) {
  const int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

Integers integers(PyObject* sequence) {
  const py::object items = steal(PySequence_Fast(sequence, "expected a sequence of ints"));
  Integers values;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i)
    values.push_back(integer(PySequence_Fast_GET_ITEM(items.ptr(), i)));
  return values;
}

struct Arguments {
  Integers stride, padding, dilation;
  int64_t groups = 1;
  std::string implementation;  // empty: the grid chooses

  Geometry geometry() const { return {view(stride), view(padding), view(dilation), groups}; }
};

// From (stride, padding, dilation, groups, implementation or None).
Arguments arguments_of(PyObject* geometry) {
  if (!PyTuple_Check(geometry) || PyTuple_GET_SIZE(geometry) != 5) throw py::type_error("a geometry is a tuple of 5");
  Arguments arguments;
  arguments.stride = integers(PyTuple_GET_ITEM(geometry, 0));
  arguments.padding = integers(PyTuple_GET_ITEM(geometry, 1));
  arguments.dilation = integers(PyTuple_GET_ITEM(geometry, 2));
  arguments.groups = integer(PyTuple_GET_ITEM(geometry, 3));
  if (PyObject* name = PyTuple_GET_ITEM(geometry, 4); name != Py_None) arguments.implementation = text(name);
  return arguments;
}

bool is_tuple_of_ints(PyObject* value, Py_ssize_t count) {
  if (!PyTuple_CheckExact(value) || PyTuple_GET_SIZE(value) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i)
    if (!PyLong_CheckExact(PyTuple_GET_ITEM(value, i))) return false;
  return true;
}

// Appends an exact int `times` times, or the elements of a tuple of `count` exact ints each `times` times; false if
// the value is neither, or too large.
bool append(Integers& values, PyObject* value, Py_ssize_t count, int times) {
  const bool single = PyLong_CheckExact(value);
  if (!single && !is_tuple_of_ints(value, count)) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    const int64_t number = PyLong_AsLongLong(single ? value : PyTuple_GET_ITEM(value, i));
    if (number == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    for (int j = 0; j < times; ++j) values.push_back(number);
  }
  return true;
}

// (vertical, horizontal) from one int or two.
bool append_pair(Integers& values, PyObject* value) { return append(values, value, 2, 1); }

// (top, bottom, left, right) from one int, two or four.
bool append_sides(Integers& values, PyObject* value) {
  return append(values, value, 4, 1) || append(values, value, 2, 2);
}

py::tuple tuple_of(const Integers& values) {
  py::tuple tuple(values.size());
  for (size_t i = 0; i < values.size(); ++i) tuple[i] = values[i];
  return tuple;
}

// --- The calls ------------------------------------------------------------------------------------------------------

py::object forward(PyObject* x_, PyObject* w_, PyObject* bias_, PyObject* geometry, const std::string& activation,
                   double slope) {
  Operands operands;
  const View x = operands.add(x_), w = operands.add(w_), bias = bias_ == Py_None ? View{} : operands.add(bias_);
  if (!operands.ok) return py::none();
  const Arguments arguments = arguments_of(geometry);
  return with_result(x_, [&](const Allocate& allocate) {
    conv2d(operands.dtype, x, w, bias.data ? &bias : nullptr, arguments.geometry(), activation, slope,
           arguments.implementation, allocate);
  });
}

double slope_of(PyObject* value) {
  const double slope = PyFloat_AsDouble(value);
  if (slope == -1 && PyErr_Occurred()) throw py::error_already_set();
  return slope;
}

// (x, w, None, geometry)
py::object conv2d_(PyObject* const* a) { return forward(a[0], a[1], Py_None, a[3], "none", 0); }

// (x, w, bias, geometry, activation, slope)
py::object conv2d_bias_act_(PyObject* const* a) { return forward(a[0], a[1], a[2], a[3], text(a[4]), slope_of(a[5])); }

// (a, b, size, geometry)
template <auto op>
py::object gradient(PyObject* const* arguments) {
  Operands operands;
  const View a = operands.add(arguments[0]), b = operands.add(arguments[1]);
  if (!operands.ok) return py::none();
  const Integers size = integers(arguments[2]);
  const Arguments rest = arguments_of(arguments[3]);
  return with_result(arguments[0], [&](const Allocate& allocate) {
    op(operands.dtype, a, b, view(size), rest.geometry(), rest.implementation, allocate);
  });
}

// (input, weight, bias, stride, padding, dilation, groups, activation, negative_slope, implementation)
py::object call_conv2d(PyObject* const* a) {
  PyObject *x_ = a[0], *w_ = a[1], *bias_ = a[2], *groups = a[6], *activation = a[7], *slope = a[8],
           *implementation = a[9];
  Arguments arguments;
  if (!is_plain(a, 3)) return py::none();
  if (!append_pair(arguments.stride, a[3]) || !append_sides(arguments.padding, a[4]) ||
      !append_pair(arguments.dilation, a[5]) || !PyLong_CheckExact(groups) || !PyUnicode_Check(activation))
    return py::none();
  Operands operands;
  const View x = operands.add(x_), w = operands.add(w_), bias = bias_ == Py_None ? View{} : operands.add(bias_);
  if (!operands.ok || x.dim != 4) return py::none();

  const bool is_bilinear = bias_ == Py_None && PyUnicode_CompareWithASCIIString(activation, "none") == 0;
  if (needs_graph(a, 3)) {
    const py::object geometry =
        steal(PyTuple_Pack(5, tuple_of(arguments.stride).ptr(), tuple_of(arguments.padding).ptr(),
                           tuple_of(arguments.dilation).ptr(), groups, implementation));
    PyObject* bilinear[] = {x_, w_, Py_None, geometry.ptr()};
    PyObject* fused[] = {x_, w_, bias_, geometry.ptr(), activation, slope};
    return steal(is_bilinear ? PyObject_Vectorcall(torch.apply, bilinear, 4, nullptr)
                             : PyObject_Vectorcall(torch.apply_bias_act, fused, 6, nullptr));
  }
  arguments.groups = integer(groups);
  if (implementation != Py_None) arguments.implementation = text(implementation);
  const std::string name = text(activation);
  const double negative_slope = slope_of(slope);
  return with_result(x_, [&](const Allocate& allocate) {
    conv2d(operands.dtype, x, w, bias.data ? &bias : nullptr, arguments.geometry(), name, negative_slope,
           arguments.implementation, allocate);
  });
}

// --- The module -----------------------------------------------------------------------------------------------------

// A Python function of `count` arguments by CPython's fastest calling convention: pybind11's takes 0.3 us longer.
template <Py_ssize_t count, py::object (*function)(PyObject* const*)>
PyObject* fast_call(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
  try {
    if (given != count)
      throw py::type_error("expected " + std::to_string(count) + " arguments, but got " + std::to_string(given));
    return function(arguments).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* is_plain_(PyObject*, PyObject* const* tensors, Py_ssize_t count) {
  try {
    return PyBool_FromLong(is_plain(tensors, count));
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

PyMethodDef method(const char* name, PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}

template <Py_ssize_t count, py::object (*function)(PyObject* const*)>
PyMethodDef method(const char* name) {
  return method(name, &fast_call<count, function>);
}

void find_torch() {
  py::object tensor = py::module_::import("torch").attr("Tensor");
  if (py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    const auto capsule = tensor.attr("__dlpack_c_exchange_api__").cast<py::capsule>();
    const auto* found = capsule.get_pointer<dlpack::ExchangeAPI>();
    if (found->major == 1 && found->tensor_from_py_object) torch.api = found;
  }
  torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.release().ptr());
  torch.new_empty_strided = PyUnicode_InternFromString("new_empty_strided");
  torch.is_neg = PyUnicode_InternFromString("is_neg");
  torch.requires_grad = PyUnicode_InternFromString("requires_grad");
}

void set_hooks(py::object parameter, const py::tuple& observers, py::object is_grad_enabled, py::object is_forward_ad,
               py::object apply, py::object apply_bias_act) {
  torch.parameter = parameter.release().ptr();
  for (py::handle observer : observers) torch.observers.push_back(observer.inc_ref().ptr());
  torch.is_grad_enabled = is_grad_enabled.release().ptr();
  torch.is_forward_ad = is_forward_ad.release().ptr();
  torch.apply = apply.release().ptr();
  torch.apply_bias_act = apply_bias_act.release().ptr();
}

// Called once all kernels of torchconv are registered.
void set_registered_kernels(py::object kernels) {
  if (!py::isinstance<py::set>(kernels)) return;
  torch.registered_kernels = kernels.release().ptr();
  torch.own_kernels = count_kernels_of_torchconv();
}

}  // namespace

void bind_fast_path(py::module_& module) {
  find_torch();
  module.def("set_hooks", &set_hooks);
  module.def("set_registered_kernels", &set_registered_kernels);
  module.def("set_fast_path", [](bool on) { return enabled = on; });
  static PyMethodDef methods[] = {
      method<10, call_conv2d>("call_conv2d"),
      method<4, conv2d_>("conv2d"),
      method<6, conv2d_bias_act_>("conv2d_bias_act"),
      method<4, gradient<conv2d_grad_input>>("conv2d_grad_input"),
      method<4, gradient<conv2d_grad_weight>>("conv2d_grad_weight"),
      method("is_plain", &is_plain_),
      {nullptr, nullptr, 0, nullptr},
  };
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace torchconv
