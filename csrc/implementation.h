// The grid: columns are the three operators, rows are implementations, each one algorithm for one instruction set.
#pragma once

#include "conv.h"

#include <string>
#include <vector>

namespace torchconv {

enum class Op : uint8_t { forward, grad_input, grad_weight };

struct Implementation {
  const char* name = nullptr;                   // "cpu.reference"
  bool (*available)() = nullptr;                // can this machine run it?
  bool (*supports)(const Conv&, Op) = nullptr;  // does it do this problem?

  // The columns; a row may leave some of them empty.
  void (*forward)(const Conv&, const void* x, const void* w, void* y, const Epilogue&) = nullptr;
  void (*grad_input)(const Conv&, const void* y, const void* w, void* x) = nullptr;
  void (*grad_weight)(const Conv&, const void* x, const void* y, void* w) = nullptr;

  bool can_do(const Conv& conv, Op op) const {
    const bool filled = op == Op::forward      ? forward != nullptr
                        : op == Op::grad_input ? grad_input != nullptr
                                               : grad_weight != nullptr;
    return filled && available() && supports(conv, op);
  }
};

// Every row, in the order in which they are tried. The last one accepts every problem.
const std::vector<Implementation>& implementations();

// The first available row that supports the problem or, if `name` is not empty, the row of that name.
// Throws std::runtime_error if there is no such row, or if it cannot do the problem.
const Implementation& choose(const Conv& conv, Op op, const std::string& name);

}  // namespace torchconv
