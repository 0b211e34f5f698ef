// The three operators of an implementation, defined from its kernel (kernel_table.h): they call the kernel with the
// dtype of the problem. The files that instantiate kernels include this; kernel_table.cpp, which only lists them, does
// not.

template <class Kernel>
void Correlate<Kernel>::forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  Kernel::Types::with(conv.dtype, [&](auto t) {
    using S = decltype(t);
    Kernel::correlate(forward_parts(conv), static_cast<const S*>(x), static_cast<const S*>(w), static_cast<S*>(y),
                      epilogue);
  });
}

template <class Kernel>
void Correlate<Kernel>::grad_input(const Conv& conv, const void* y, const void* w, void* x) {
  Kernel::Types::with(conv.dtype, [&](auto t) {
    using S = decltype(t);
    Kernel::correlate(grad_input_parts(conv), static_cast<const S*>(y), static_cast<const S*>(w), static_cast<S*>(x),
                      Epilogue());
  });
}

template <class Kernel>
void GradWeight<Kernel>::grad_weight(const Conv& conv, const void* x, const void* y, void* w) {
  Kernel::Types::with(conv.dtype, [&](auto t) {
    using S = decltype(t);
    Kernel::grad_weight(conv, static_cast<const S*>(x), static_cast<const S*>(y), static_cast<S*>(w));
  });
}
