// torchconv.conv2d in one function, for what nearly every call is: plain tensors, plain numbers, and nobody listening
// but autograd. Python takes 2 us longer to find that out, which is a fifth of a small layer's time. Whatever is
// special in any way gives None, and functional.py goes on from the start.
#include "eager.h"

#include "direct.h"

#include <vector>

namespace torchconv {

namespace {

namespace py = pybind11;

// Set once, at import, by autograd.py.
struct Hooks {
  PyObject *tensor, *parameter;      // the types that are plain
  std::vector<PyObject*> listeners;  // functions, each true while something but autograd listens
  PyObject *is_grad_enabled, *is_forward_ad;
  PyObject *apply, *apply_bias_act;  // record a graph
  PyObject *is_neg, *requires_grad;  // names of attributes
} hooks;

py::object steal(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

bool truth(PyObject* owned) {
  const int value = PyObject_IsTrue(steal(owned).ptr());
  if (value < 0) throw py::error_already_set();
  return value == 1;
}

// Whether the call can go around the dispatcher; None counts as plain.
bool is_plain(PyObject* const* tensors, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensors[i]));
    if (tensors[i] == Py_None) continue;
    if (type != hooks.tensor && type != hooks.parameter) return false;
    if (truth(PyObject_CallMethodNoArgs(tensors[i], hooks.is_neg))) return false;
  }
  for (PyObject* listener : hooks.listeners)
    if (truth(PyObject_CallNoArgs(listener))) return false;
  return true;
}

bool needs_graph(PyObject* const* tensors, Py_ssize_t count) {
  if (truth(PyObject_CallNoArgs(hooks.is_grad_enabled)))
    for (Py_ssize_t i = 0; i < count; ++i)
      if (tensors[i] != Py_None && truth(PyObject_GetAttr(tensors[i], hooks.requires_grad))) return true;
  return truth(PyObject_CallNoArgs(hooks.is_forward_ad));
}

bool is_tuple_of_ints(PyObject* value, Py_ssize_t count) {
  if (!PyTuple_CheckExact(value) || PyTuple_GET_SIZE(value) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i)
    if (!PyLong_CheckExact(PyTuple_GET_ITEM(value, i))) return false;
  return true;
}

// (vertical, horizontal), or null if it is not written in one of the usual two ways
py::object pair(PyObject* value) {
  if (PyLong_CheckExact(value)) return steal(PyTuple_Pack(2, value, value));
  if (is_tuple_of_ints(value, 2)) return py::reinterpret_borrow<py::object>(value);
  return {};
}

// (top, bottom, left, right), or null
py::object four_sides(PyObject* value) {
  if (PyLong_CheckExact(value)) return steal(PyTuple_Pack(4, value, value, value, value));
  if (is_tuple_of_ints(value, 4)) return py::reinterpret_borrow<py::object>(value);
  if (!is_tuple_of_ints(value, 2)) return {};
  PyObject *rows = PyTuple_GET_ITEM(value, 0), *cols = PyTuple_GET_ITEM(value, 1);
  return steal(PyTuple_Pack(4, rows, rows, cols, cols));
}

// conv2d(input, weight, bias, stride, padding, dilation, groups, activation, negative_slope, implementation)
py::object eager_conv2d(PyObject* const* a) {
  PyObject *x = a[0], *w = a[1], *bias = a[2], *groups = a[6], *activation = a[7], *slope = a[8],
           *implementation = a[9];
  if (!is_plain(a, 3)) return py::none();
  const py::object stride = pair(a[3]), padding = four_sides(a[4]), dilation = pair(a[5]);
  if (!stride || !padding || !dilation || !PyLong_CheckExact(groups) || !PyUnicode_Check(activation)) return py::none();
  if (!is_batch(x)) return py::none();
  const py::object geometry =
      steal(PyTuple_Pack(5, stride.ptr(), padding.ptr(), dilation.ptr(), groups, implementation));

  PyObject* bilinear[] = {x, w, Py_None, geometry.ptr()};
  PyObject* fused[] = {x, w, bias, geometry.ptr(), activation, slope};
  const bool plain = bias == Py_None && PyUnicode_CompareWithASCIIString(activation, "none") == 0;
  if (needs_graph(a, 3))
    return steal(plain ? PyObject_Vectorcall(hooks.apply, bilinear, 4, nullptr)
                       : PyObject_Vectorcall(hooks.apply_bias_act, fused, 6, nullptr));
  return plain ? direct_conv2d(bilinear) : direct_conv2d_bias_act(fused);
}

PyObject* is_plain_(PyObject*, PyObject* const* tensors, Py_ssize_t count) {
  try {
    return PyBool_FromLong(is_plain(tensors, count));
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

void set_hooks(py::object tensor, py::object parameter, const py::tuple& listeners, py::object is_grad_enabled,
               py::object is_forward_ad, py::object apply, py::object apply_bias_act) {
  hooks.tensor = tensor.release().ptr();
  hooks.parameter = parameter.release().ptr();
  for (py::handle listener : listeners) hooks.listeners.push_back(listener.inc_ref().ptr());
  hooks.is_grad_enabled = is_grad_enabled.release().ptr();
  hooks.is_forward_ad = is_forward_ad.release().ptr();
  hooks.apply = apply.release().ptr();
  hooks.apply_bias_act = apply_bias_act.release().ptr();
  hooks.is_neg = PyUnicode_InternFromString("is_neg");
  hooks.requires_grad = PyUnicode_InternFromString("requires_grad");
}

}  // namespace

void bind_eager(py::module_& module) {
  module.def("set_hooks", &set_hooks);
  static PyMethodDef methods[] = {
      fast_method<10, eager_conv2d>("eager_conv2d"),
      fast_method("is_plain", &is_plain_),
      {nullptr, nullptr, 0, nullptr},
  };
  if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace torchconv
