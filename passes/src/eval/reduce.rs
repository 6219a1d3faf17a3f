//! Reductions, `ArgMax`, `ArgMin`, `CumSum`.

use onnx_quant_ir::{DataType, Tensor};

use super::array::{Nums, Walk};
use super::{Ctx, EvalError, Outcome, dims_of, shape};

pub(super) fn evaluate(cx: &Ctx<'_>, op: &str) -> Outcome {
    let result = match op {
        "ReduceSum" | "ReduceProd" | "ReduceMax" | "ReduceMin" | "ReduceMean" => reduce(cx, op),
        "ArgMax" | "ArgMin" => arg(cx, op),
        "CumSum" => cum_sum(cx),
        _ => return None,
    };
    Some(result.map(|t| vec![t]))
}

/// A tensor seen as groups: for each result element, the elements that are reduced into it, in row-major order.
struct Groups {
    kept: Vec<usize>,
    reduced: Vec<usize>,
    kept_strides: Vec<isize>,
    reduced_strides: Vec<isize>,
}

impl Groups {
    fn new(dims: &[usize], axes: &[usize]) -> Self {
        let strides = shape::strides(dims);
        let part = |inside: bool| -> (Vec<usize>, Vec<isize>) {
            (0..dims.len())
                .filter(|i| axes.contains(i) == inside)
                .map(|i| (dims[i], strides[i]))
                .unzip()
        };
        let (kept, kept_strides) = part(false);
        let (reduced, reduced_strides) = part(true);
        Self {
            kept,
            reduced,
            kept_strides,
            reduced_strides,
        }
    }

    fn size(&self) -> usize {
        self.reduced.iter().product()
    }

    fn map<T: Copy, U>(&self, v: &[T], f: impl Fn(&mut dyn Iterator<Item = T>) -> U) -> Vec<U> {
        Walk::new(&self.kept, &self.kept_strides, 0)
            .map(|base| {
                let walk = Walk::new(&self.reduced, &self.reduced_strides, base as isize);
                f(&mut walk.map(|i| v[i]))
            })
            .collect()
    }
}

fn keep_dims(cx: &Ctx<'_>, dims: &[usize], axes: &[usize]) -> Vec<usize> {
    let keep = cx.node.attr_i("keepdims").unwrap_or(1) != 0;
    (0..dims.len())
        .filter(|i| keep || !axes.contains(i))
        .map(|i| if axes.contains(&i) { 1 } else { dims[i] })
        .collect()
}

fn reduce(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    let list = cx.ints_or(1, "axes")?.unwrap_or_default();
    if list.is_empty() && cx.node.attr_i("noop_with_empty_axes") == Some(1) {
        return Ok(t.clone());
    }
    let axes = if list.is_empty() {
        (0..dims.len()).collect()
    } else {
        shape::axes(&list, dims.len())
            .ok_or_else(|| cx.invalid(format!("axes {list:?} are outside the rank")))?
    };
    let out = keep_dims(cx, &dims, &axes);
    cx.room(t.dtype(), &out)?;
    let groups = Groups::new(&dims, &axes);
    let count = groups.size();
    if count == 0 && !matches!(op, "ReduceSum" | "ReduceProd") {
        return Err(cx.unsupported("reduction of no elements"));
    }
    macro_rules! float {
        ($v:ident, $t:ty) => {
            groups.map($v, |it| match op {
                // Sums are taken in f64, so that their order does not show in the result.
                "ReduceSum" => it.map(f64::from).fold(0.0, |a, x| a + x) as $t,
                "ReduceMean" => (it.map(f64::from).fold(0.0, |a, x| a + x) / count as f64) as $t,
                "ReduceProd" => it.map(f64::from).product::<f64>() as $t,
                "ReduceMax" => it.fold(
                    <$t>::NEG_INFINITY,
                    |m, x| {
                        if x > m || x.is_nan() { x } else { m }
                    },
                ),
                _ => it.fold(
                    <$t>::INFINITY,
                    |m, x| {
                        if x < m || x.is_nan() { x } else { m }
                    },
                ),
            })
        };
    }
    let nums = match &cx.nums(0)? {
        Nums::F32(v) => Nums::F32(float!(v, f32)),
        Nums::F64(v) => Nums::F64(float!(v, f64)),
        Nums::Int(v) => Nums::Int(groups.map(v, |it| match op {
            "ReduceSum" => it.fold(0, i128::wrapping_add),
            "ReduceProd" => it.fold(1, i128::wrapping_mul),
            "ReduceMax" => it.max().unwrap_or(0),
            "ReduceMin" => it.min().unwrap_or(0),
            _ => it.sum::<i128>() / count as i128,
        })),
    };
    cx.store(&nums, t.dtype(), &out)
}

fn arg(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let dims = dims_of(cx.input(0)?)?;
    let axis = cx.axis(0, dims.len())?;
    let last = cx.node.attr_i("select_last_index") == Some(1);
    let out = keep_dims(cx, &dims, &[axis]);
    cx.room(DataType::Int64, &out)?;
    if dims[axis] == 0 {
        return Err(cx.invalid("the axis is empty"));
    }
    let groups = Groups::new(&dims, &[axis]);
    let max = op == "ArgMax";
    fn best<T: Copy + PartialOrd>(it: &mut dyn Iterator<Item = T>, max: bool, last: bool) -> i128 {
        let mut best: Option<(usize, T)> = None;
        for (i, x) in it.enumerate() {
            let better = match best {
                None => true,
                Some((_, b)) => (if max { x > b } else { x < b }) || (last && x == b),
            };
            if better {
                best = Some((i, x));
            }
        }
        best.map_or(0, |(i, _)| i as i128)
    }
    let nums = match &cx.nums(0)? {
        Nums::Int(v) => groups.map(v, |it| best(it, max, last)),
        Nums::F32(v) if v.iter().all(|x| !x.is_nan()) => groups.map(v, |it| best(it, max, last)),
        Nums::F64(v) if v.iter().all(|x| !x.is_nan()) => groups.map(v, |it| best(it, max, last)),
        _ => return Err(cx.unsupported("NaN")),
    };
    cx.store(&Nums::Int(nums), DataType::Int64, &out)
}

fn cum_sum(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    let axis = cx
        .input(1)?
        .scalar_i64()
        .and_then(|a| shape::axis(a, dims.len()))
        .ok_or_else(|| cx.invalid("the axis is no scalar inside the rank"))?;
    cx.room(t.dtype(), &dims)?;
    let flag = |name| cx.node.attr_i(name) == Some(1);
    let (exclusive, reverse) = (flag("exclusive"), flag("reverse"));
    let along = shape::strides(&dims)[axis] as usize;
    let groups = Groups::new(&dims, &[axis]);
    let starts: Vec<usize> = Walk::new(&groups.kept, &groups.kept_strides, 0).collect();
    fn run<T: Copy + std::ops::Add<Output = T>>(
        v: &mut [T],
        zero: T,
        starts: &[usize],
        (n, along): (usize, usize),
        (exclusive, reverse): (bool, bool),
    ) {
        for &start in starts {
            let mut sum = zero;
            for k in 0..n {
                let k = if reverse { n - 1 - k } else { k };
                let slot = &mut v[start + k * along];
                let next = sum + *slot;
                *slot = if exclusive { sum } else { next };
                sum = next;
            }
        }
    }
    let (shape, flags) = ((dims[axis], along), (exclusive, reverse));
    let mut nums = cx.nums(0)?;
    match &mut nums {
        Nums::Int(v) => run(v, 0, &starts, shape, flags),
        Nums::F32(v) => run(v, 0.0, &starts, shape, flags),
        Nums::F64(v) => run(v, 0.0, &starts, shape, flags),
    }
    cx.store(&nums, t.dtype(), &dims)
}
