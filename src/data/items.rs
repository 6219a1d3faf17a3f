//! Data whose samples are made one at a time, in any order: images, texts, recordings, random numbers, and arrays that
//! are read in another order than the one they are stored in.

use std::fmt;
use std::path::Path;

use super::error::DataError;

/// Samples that can be had by index.
pub(super) trait Items: fmt::Debug + Send + Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// The shape of each given input for one sample, without a sample axis.
    fn dims(&self, index: usize) -> Vec<Vec<usize>>;

    /// Appends one sample: for each given input its elements in ONNX's order and the input's type.
    ///
    /// # Errors
    /// What is wrong with the sample.
    fn read(&self, index: usize, out: &mut [Vec<u8>]) -> Result<(), DataError>;

    /// Samples of different groups never share a batch.
    fn group(&self, _index: usize) -> usize {
        0
    }

    /// Inputs that have no sample axis and are the same for all samples of a group; empty for none.
    fn shared(&self, _index: usize) -> &[bool] {
        &[]
    }

    /// The file that a sample comes from, where each has one.
    fn file(&self, _index: usize) -> Option<&Path> {
        None
    }

    /// The token after each token of a sample, where samples are parts of a text.
    fn next_tokens(&self, _index: usize) -> Option<Result<Vec<i64>, DataError>> {
        None
    }

    /// Whether making a sample takes so long that several threads should.
    fn is_costly(&self) -> bool {
        false
    }
}

/// How samples become runs of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ItemLayout {
    /// Axis 0 counts samples; `piece` is the size that the model fixes it to.
    Samples { piece: Option<usize> },
    /// Each sample is one complete feed: the inputs have no sample axis.
    Feeds,
}

/// Makes the samples of a batch; one row of buffers a sample.
pub(super) fn read_all(
    items: &dyn Items,
    chosen: &[usize],
    inputs: usize,
) -> Result<Vec<Vec<Vec<u8>>>, DataError> {
    let one = |index: usize| {
        let mut out = vec![Vec::new(); inputs];
        items.read(index, &mut out).map(|()| out)
    };
    on_threads(items, chosen, &one).into_iter().collect()
}

/// Makes the samples and forgets them: `None` for each that can be made, else what is wrong.
pub(super) fn try_all(
    items: &dyn Items,
    chosen: &[usize],
    inputs: usize,
) -> Vec<Option<DataError>> {
    let one = |index: usize| items.read(index, &mut vec![Vec::new(); inputs]).err();
    on_threads(items, chosen, &one)
}

/// Calls a function for each sample, on several threads where it takes long.
fn on_threads<T: Send>(
    items: &dyn Items,
    chosen: &[usize],
    one: &(dyn Fn(usize) -> T + Sync),
) -> Vec<T> {
    let threads = rayon::current_num_threads().min(chosen.len());
    let part = |part: &[usize]| part.iter().map(|&i| one(i)).collect::<Vec<T>>();
    if !items.is_costly() || threads < 2 {
        return part(chosen);
    }
    let part = &part;
    // Not rayon's own threads: a consumer that waits on one of them for this batch would block the one that makes it.
    std::thread::scope(|scope| {
        let handles: Vec<_> = chosen
            .chunks(chosen.len().div_ceil(threads))
            .map(|chosen| scope.spawn(move || part(chosen)))
            .collect();
        let joined = handles.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined
            .flat_map(|r| r.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
