// Defines the three operators of an implementation: they run a plan of its kernel (kernel_table.h). The files that
// instantiate kernels include this; kernel_table.cpp, which only lists them, does not.

template <class Kernel>
void Operators<Kernel>::forward(const AnyPlan& plan, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  Kernel::Types::with(plan.dtype(), [&](auto t) {
    using S = decltype(t);
    plan.get<typename Kernel::template Correlate<S>>().run(static_cast<const S*>(x), static_cast<const S*>(w),
                                                           static_cast<S*>(y), epilogue);
  });
}

// The correlations of grad_input read y and compute x.
template <class Kernel>
void Operators<Kernel>::grad_input(const AnyPlan& plan, const void* y, const void* w, void* x) {
  forward(plan, y, w, x, Epilogue());
}

template <class Kernel>
void Operators<Kernel>::grad_weight(const AnyPlan& plan, const void* x, const void* y, void* w) {
  if constexpr (has_grad_weight<Kernel>)
    Kernel::Types::with(plan.dtype(), [&](auto t) {
      using S = decltype(t);
      plan.get<typename Kernel::template GradWeight<S>>().run(static_cast<const S*>(x), static_cast<const S*>(y),
                                                              static_cast<S*>(w));
    });
}
