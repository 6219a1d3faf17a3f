//! Prepared models, kept for the shapes that were asked for last: each shape is prepared once, whatever the threads.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::{Engine, EngineError, Request, Session};

/// Bytes of weights that all sessions of a cache together may hold.
const WEIGHT_BYTES: usize = 1 << 30;

type Slot = Arc<OnceLock<Result<Arc<dyn Session>, EngineError>>>;

/// Sessions of one model by [`Request`]; the least recently used is dropped when there are too many.
pub struct SessionCache {
    engine: Arc<dyn Engine>,
    model: Arc<Model>,
    capacity: usize,
    /// The most recently used last.
    slots: Mutex<Vec<(Request, Slot)>>,
}

impl std::fmt::Debug for SessionCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionCache")
            .field("engine", &self.engine.name())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl SessionCache {
    /// A cache that keeps up to `capacity` prepared sessions, and fewer of a model whose weights (each session has
    /// its own) would together take more than a gibibyte; always at least one.
    pub fn new(engine: Arc<dyn Engine>, model: Arc<Model>, capacity: usize) -> Self {
        let values = model.all_values();
        let weights = values.iter().filter_map(|&v| model.value(v).init.as_ref());
        let bytes: usize = weights.filter_map(|t| t.byte_len().ok()).sum();
        Self {
            engine,
            model,
            capacity: capacity.min(WEIGHT_BYTES / bytes.max(1)).max(1),
            slots: Mutex::new(Vec::new()),
        }
    }

    /// The session for a request. Threads that ask for the same request at the same time wait for one preparation;
    /// other requests are prepared meanwhile. A failure is kept like a success.
    ///
    /// # Errors
    /// As [`Engine::prepare`].
    pub fn get(&self, request: &Request) -> Result<Arc<dyn Session>, EngineError> {
        let slot = self.slot(request);
        slot.get_or_init(|| self.engine.prepare(&self.model, request))
            .clone()
    }

    fn slot(&self, request: &Request) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match slots.iter().position(|(r, _)| r == request) {
            Some(at) => slots.remove(at),
            None => {
                if slots.len() >= self.capacity {
                    slots.remove(0);
                }
                (request.clone(), Slot::default())
            }
        };
        let slot = entry.1.clone();
        slots.push(entry);
        slot
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use onnx_quant_ir::engine::Observer;
    use onnx_quant_ir::{DataType, Tensor};
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counting(AtomicUsize);
    struct Nothing;

    impl Session for Nothing {
        fn run(&self, _: &[Tensor], _: Option<Observer<'_>>) -> Result<Vec<Tensor>, EngineError> {
            Ok(Vec::new())
        }
    }

    impl Engine for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }
        fn prepare(&self, _: &Model, request: &Request) -> Result<Arc<dyn Session>, EngineError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(5));
            if request.feed.is_empty() {
                return Err(EngineError::Feed("no input".to_owned()));
            }
            Ok(Arc::new(Nothing))
        }
    }

    fn shape(n: usize) -> Request {
        Request {
            feed: vec![("x".to_owned(), DataType::Float, vec![n])],
            ..Request::default()
        }
    }

    #[test]
    fn each_shape_is_prepared_once() {
        let engine = Arc::new(Counting(AtomicUsize::new(0)));
        let cache = SessionCache::new(engine.clone(), Arc::default(), 2);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| cache.get(&shape(1)).unwrap());
            }
        });
        assert_eq!(engine.0.load(Ordering::SeqCst), 1);
        cache.get(&shape(2)).unwrap();
        cache.get(&shape(1)).unwrap();
        cache.get(&shape(3)).unwrap();
        cache.get(&shape(1)).unwrap();
        assert_eq!(engine.0.load(Ordering::SeqCst), 3);
        cache.get(&shape(2)).unwrap();
        assert_eq!(engine.0.load(Ordering::SeqCst), 4);
        assert!(cache.get(&Request::default()).is_err());
        assert!(cache.get(&Request::default()).is_err());
        assert_eq!(engine.0.load(Ordering::SeqCst), 5);
    }
}
