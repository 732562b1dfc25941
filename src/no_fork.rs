//! Forks, in a build that makes none.

pub(crate) mod forks {
    //! There are none.

    use std::marker::PhantomData;

    /// There are none.
    pub(crate) struct Forks<P>(PhantomData<P>);

    impl<P> Default for Forks<P> {
        fn default() -> Self {
            Self(PhantomData)
        }
    }
}
