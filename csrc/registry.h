// The grid: columns are the three operators, rows are implementations, each one algorithm for one instruction set
// or one generation of GPUs.
#pragma once

#include "conv.h"

#include <string>
#include <vector>

namespace torchconv {

enum class Op : uint8_t { forward, grad_input, grad_weight };

const char* device_name(Device device);  // "cpu", "cuda"

struct Implementation {
  const char* name = nullptr;                   // "cpu.reference"
  Device device = Device::cpu;                  // where its operands and its result are
  bool (*available)() = nullptr;                // can this machine run it?
  bool (*supports)(const Conv&, Op) = nullptr;  // does it do this problem?
  bool (*suits)(const Conv&, Op) = nullptr;     // is it likely to be the fastest for it? Asked if no name is given.
  const char* does = "";                        // supports, in words
  const char* is_for = "";                      // suits, in words

  // The columns; a row may leave some of them empty.
  void (*forward)(const Conv&, const void* x, const void* w, void* y, const Epilogue&) = nullptr;
  void (*grad_input)(const Conv&, const void* y, const void* w, void* x) = nullptr;
  void (*grad_weight)(const Conv&, const void* x, const void* y, void* w) = nullptr;

  bool has(Op op) const {
    return op == Op::forward      ? forward != nullptr
           : op == Op::grad_input ? grad_input != nullptr
                                  : grad_weight != nullptr;
  }
  bool can_do(const Conv& conv, Op op) const {
    return device == conv.device && has(op) && available() && supports(conv, op);
  }
};

// Every row, in the order in which they are tried. The last one of each device accepts every problem.
const std::vector<Implementation>& implementations();

// The first available row of the problem's device that supports and suits it. A pure function of the problem, the size
// of its batch left out: what one sample becomes does not depend on the others. (grad_weight is a sum over the batch.)
//
// `names`, if not empty, is a list with commas: of rows, of which the first that supports the problem is taken (those
// of other devices are passed over), and of "!part", which leaves out all rows with this part in their name. A part of
// a name selects, too: of the rows that have it, the first that supports and suits the problem, or else the first that
// supports it. Throws std::runtime_error if there is no such row.
const Implementation& choose(const Conv& conv, Op op, const std::string& names);

// The name, or the part of a name, that stands for one of version 0.1, or else the same name.
std::string current_name(std::string name);

// Why `choose` does not take this row of the problem's device if no name is given: empty if it would.
std::string why_not(const Implementation& row, const Conv& conv, Op op);

}  // namespace torchconv
