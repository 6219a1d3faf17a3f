//! Runs a model over the calibration data in parts: the values at the last cut are kept, so that each layer costs the
//! nodes since then and not the whole model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use onnx_quant_ir::engine::{Engine, Request};
use onnx_quant_ir::{Model, Tensor, ValueId};
use rayon::prelude::*;

use super::store::{Budget, Filling, Store};
use super::submodel;
use crate::calibrate::windows;
use crate::data::{Batch, DataSet};
use crate::engine::SessionCache;
use crate::error::Error;

/// Different shapes that are kept prepared.
const SHAPES: usize = 64;

/// A model with the values that were kept at a cut.
pub(crate) struct Flow<'a> {
    engine: &'a Arc<dyn Engine>,
    data: &'a DataSet,
    cut: Vec<ValueId>,
    store: Store,
    budget: Budget,
}

impl<'a> Flow<'a> {
    /// A flow at the model's inputs.
    pub(crate) fn new(engine: &'a Arc<dyn Engine>, data: &'a DataSet, budget: &Budget) -> Self {
        Self {
            engine,
            data,
            cut: Vec::new(),
            store: Store::default(),
            budget: budget.clone(),
        }
    }

    /// Moves to another cut of the model.
    pub(super) fn advance(&mut self, model: &Model, cut: &[ValueId]) -> Result<(), Error> {
        let mut next = Filling::new(&self.budget);
        let keep = |_: &Batch, tensors| Ok(tensors);
        self.run(model, cut, keep, |tensors: Vec<Tensor>| next.push(&tensors))?;
        self.store = next.seal()?;
        self.cut = cut.to_vec();
        Ok(())
    }

    /// Computes values on all batches. `work` is done in parallel, `take` in the order of the batches, of each as soon as
    /// those before it were taken.
    pub(crate) fn run<T: Send>(
        &self,
        model: &Model,
        wanted: &[ValueId],
        work: impl Fn(&Batch, Vec<Tensor>) -> Result<T, Error> + Sync,
        take: impl FnMut(T) -> Result<(), Error> + Send,
    ) -> Result<(), Error> {
        let mut distinct: Vec<ValueId> = Vec::new();
        for &v in wanted {
            // What is fed is taken from the feed.
            let fed = self.cut.contains(&v) || model.value(v).is_input();
            if !fed && !distinct.contains(&v) {
                distinct.push(v);
            }
        }
        let part = submodel::part(model, &self.cut, &distinct)?;
        let inputs: Vec<String> = part
            .main()
            .inputs
            .iter()
            .map(|&v| part.value(v).name.clone())
            .collect();
        let cache = SessionCache::new(Arc::clone(self.engine), Arc::new(part), SHAPES);
        let compute = |batch: &Batch| -> Result<T, Error> {
            let known = self.known(model, batch)?;
            let fed: Vec<(String, Tensor)> = inputs
                .iter()
                .filter_map(|n| Some((n.clone(), known.get(n)?.clone())))
                .collect();
            let computed = if distinct.is_empty() {
                Vec::new()
            } else {
                let shape = |t: &Tensor| t.dims().iter().map(|&d| d as usize).collect();
                let feed = fed.iter().map(|(n, t)| (n.clone(), t.dtype(), shape(t)));
                let request = Request {
                    feed: feed.collect(),
                    ..Request::default()
                };
                let tensors: Vec<Tensor> = fed.into_iter().map(|(_, t)| t).collect();
                cache.get(&request)?.run(&tensors, None)?
            };
            let mut out = Vec::with_capacity(wanted.len());
            for v in wanted {
                let name = &model.value(*v).name;
                let at = distinct.iter().position(|d| d == v);
                let tensor = at.and_then(|i| computed.get(i)).or_else(|| known.get(name));
                let missing = || Error::usage(format!("`{name}` was not computed"));
                out.push(tensor.cloned().ok_or_else(missing)?);
            }
            work(batch, out)
        };
        let taken = Mutex::new(InOrder::new(take));
        for window in windows(self.data, rayon::current_num_threads()) {
            // One after the other, so that what was computed seldom waits.
            let window = window?.into_iter().par_bridge();
            window.try_for_each(|batch| {
                let done = compute(&batch)?;
                let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.put(batch.index, done)
            })?;
        }
        Ok(())
    }

    /// What is fed for a batch, by name.
    fn known(&self, model: &Model, batch: &Batch) -> Result<BTreeMap<String, Tensor>, Error> {
        let names = self.data.fed().iter().map(|i| i.name.clone());
        let mut known: BTreeMap<String, Tensor> =
            names.zip(batch.tensors.iter().cloned()).collect();
        if !self.store.is_empty() {
            let tensors = self.store.get(batch.index);
            let names = self.cut.iter().map(|&v| model.value(v).name.clone());
            known.extend(names.zip(tensors));
        }
        Ok(known)
    }
}

/// Hands results on in the order of their numbers, which count from 0.
struct InOrder<T, F> {
    take: F,
    next: usize,
    waiting: BTreeMap<usize, T>,
}

impl<T, F: FnMut(T) -> Result<(), Error>> InOrder<T, F> {
    fn new(take: F) -> Self {
        Self {
            take,
            next: 0,
            waiting: BTreeMap::new(),
        }
    }

    fn put(&mut self, number: usize, result: T) -> Result<(), Error> {
        self.waiting.insert(number, result);
        while let Some(result) = self.waiting.remove(&self.next) {
            self.next += 1;
            (self.take)(result)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_handed_on_in_order_and_at_once() {
        let (mut all, mut seen) = (Vec::new(), Vec::new());
        let mut order = InOrder::new(|x: usize| {
            all.push(x);
            Ok(())
        });
        for number in [1, 0, 3, 4, 2] {
            seen.push(order.put(number, number).is_ok().then_some(order.next));
        }
        assert_eq!(seen, [Some(0), Some(2), Some(2), Some(2), Some(5)]);
        assert_eq!(all, [0, 1, 2, 3, 4]);
    }
}
