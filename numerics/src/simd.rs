//! The widest vector instructions of the processor that the program runs on, whatever it was compiled for.

/// `f` compiled for them: a loop in it that vectorizes does so in vectors of their width, with the same results.
///
/// What `f` calls is compiled so as far as it is inlined; closures within need `#[inline(always)]`. The choice costs a
/// few nanoseconds: `f` is best a loop over a thousand values or more.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Op<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Op(f))
}
