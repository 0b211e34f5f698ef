#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace torchconv {

// A Python function of so many arguments, by CPython's fastest calling convention: pybind11's takes 0.3 us more.
template <Py_ssize_t count, pybind11::object (*function)(PyObject* const*)>
PyObject* fast_call(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
  try {
    if (given != count)
      throw pybind11::type_error("expected " + std::to_string(count) + " arguments, but got " + std::to_string(given));
    return function(arguments).release().ptr();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

inline PyMethodDef fast_method(const char* name, PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}

template <Py_ssize_t count, pybind11::object (*function)(PyObject* const*)>
PyMethodDef fast_method(const char* name) {
  return fast_method(name, &fast_call<count, function>);
}

// Whether x has 4 dimensions and can be read in place.
bool is_batch(PyObject* x);

// (x, w, None, geometry) and (x, w, bias, geometry, activation, slope)
pybind11::object direct_conv2d(PyObject* const* arguments);
pybind11::object direct_conv2d_bias_act(PyObject* const* arguments);

void bind_direct(pybind11::module_& module);

}  // namespace torchconv
