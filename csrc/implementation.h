// The grid: columns are the three operators, rows are implementations, each one algorithm for one instruction set.
#pragma once

#include "conv.h"

#include <string>
#include <vector>

namespace torchconv {

enum class Op : uint8_t { forward, grad_input, grad_weight };

struct Implementation {
  const char* name;                   // "cpu.reference"
  bool (*available)();                // can this machine run it?
  bool (*supports)(const Conv&, Op);  // does it do this problem?
  void (*forward)(const Conv&, const void* x, const void* w, void* y, const Epilogue&);
  void (*grad_input)(const Conv&, const void* y, const void* w, void* x);
  void (*grad_weight)(const Conv&, const void* x, const void* y, void* w);
};

// Every row, in the order in which they are tried. The last one accepts every problem.
const std::vector<Implementation>& implementations();

// The first available row that supports the problem or, if `name` is not empty, the row of that name.
// Throws std::runtime_error if there is no such row, or if it cannot do the problem.
const Implementation& choose(const Conv& conv, Op op, const std::string& name);

}  // namespace torchconv
