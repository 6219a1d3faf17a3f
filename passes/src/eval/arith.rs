//! Elementwise operators: arithmetic, comparison, logic, casts, `Where`, `Clip`.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};

use super::array::{Nums, Raw, Walk, broadcast_strides};
use super::{Ctx, EvalError, Outcome, dims_of, shape};

pub(super) fn evaluate(cx: &Ctx<'_>, op: &str) -> Outcome {
    let result = match op {
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" => binary(cx, op),
        "Min" | "Max" | "Sum" | "Mean" => variadic(cx, op),
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => compare(cx, op),
        "And" | "Or" | "Xor" => logic(cx, op),
        "Not" => map_bool(cx, |n| match n {
            Nums::Int(v) => Some(v.iter().map(|&x| i128::from(x == 0)).collect()),
            _ => None,
        }),
        "IsNaN" => map_bool(cx, |n| match n {
            Nums::F32(v) => Some(v.iter().map(|x| i128::from(x.is_nan())).collect()),
            Nums::F64(v) => Some(v.iter().map(|x| i128::from(x.is_nan())).collect()),
            Nums::Int(_) => None,
        }),
        "Cast" | "CastLike" => cast(cx),
        "Where" => choose(cx),
        "Clip" => clip(cx),
        "Neg" | "Abs" | "Sign" | "Relu" => signs(cx, op),
        _ => match float_function(op) {
            Some((single, double)) => function(cx, single, double),
            None => return None,
        },
    };
    Some(result.map(|t| vec![t]))
}

/// Applies `f` to each pair of the broadcast of two arrays.
fn zip<T: Copy, U>(
    (a, ad): (&[T], &[usize]),
    (b, bd): (&[T], &[usize]),
    out: &[usize],
    f: impl Fn(T, T) -> U,
) -> Vec<U> {
    if ad == bd {
        return a.iter().zip(b).map(|(&x, &y)| f(x, y)).collect();
    }
    let (sa, sb) = (broadcast_strides(ad, out), broadcast_strides(bd, out));
    Walk::new(out, &sa, 0)
        .zip(Walk::new(out, &sb, 0))
        .map(|(i, j)| f(a[i], b[j]))
        .collect()
}

/// Two inputs of one type and the shape of their broadcast.
struct Pair {
    a: Nums,
    b: Nums,
    ad: Vec<usize>,
    bd: Vec<usize>,
    out: Vec<usize>,
}

fn pair(cx: &Ctx<'_>, dtype: DataType) -> Result<Pair, EvalError> {
    let (a, b) = (cx.nums(0)?, cx.nums(1)?);
    let (ad, bd) = (dims_of(cx.input(0)?)?, dims_of(cx.input(1)?)?);
    let out = shape::broadcast(&ad, &bd)
        .ok_or_else(|| cx.invalid(format!("{ad:?} and {bd:?} do not broadcast")))?;
    cx.room(dtype, &out)?;
    Ok(Pair { a, b, ad, bd, out })
}

impl Pair {
    fn zip<T: Copy, U>(&self, a: &[T], b: &[T], f: impl Fn(T, T) -> U) -> Vec<U> {
        zip((a, &self.ad), (b, &self.bd), &self.out, f)
    }
}

fn binary(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let dtype = cx.input(0)?.dtype();
    if op != "Pow" && cx.input(1)?.dtype() != dtype {
        return Err(cx.invalid("the inputs differ in type"));
    }
    if dtype == DataType::Bool {
        return Err(cx.unsupported("booleans"));
    }
    let mut p = pair(cx, dtype)?;
    if op == "Pow" {
        p.b = as_exponent(&p.a, p.b);
    }
    let fmod = cx.node.attr_i("fmod") == Some(1);
    if op == "Mod" && !fmod && dtype.is_float() {
        return Err(cx.unsupported("floats without fmod"));
    }
    let nums = match (&p.a, &p.b) {
        (Nums::Int(a), Nums::Int(b)) => {
            let f = int_function(op, fmod);
            let all: Option<Vec<i128>> = p.zip(a, b, f).into_iter().collect();
            Nums::Int(all.ok_or_else(|| {
                cx.invalid("an integer is divided by zero or has a negative power")
            })?)
        }
        (Nums::F32(a), Nums::F32(b)) => Nums::F32(p.zip(a, b, |x, y| match op {
            "Add" => x + y,
            "Sub" => x - y,
            "Mul" => x * y,
            "Div" => x / y,
            "Mod" => x % y,
            _ => x.powf(y),
        })),
        (Nums::F64(a), Nums::F64(b)) => Nums::F64(p.zip(a, b, |x, y| match op {
            "Add" => x + y,
            "Sub" => x - y,
            "Mul" => x * y,
            "Div" => x / y,
            "Mod" => x % y,
            _ => x.powf(y),
        })),
        _ => return Err(cx.unsupported("an integer with a float power")),
    };
    cx.store(&nums, dtype, &p.out)
}

fn int_function(op: &str, fmod: bool) -> impl Fn(i128, i128) -> Option<i128> {
    move |x, y| match op {
        "Add" => Some(x + y),
        "Sub" => Some(x - y),
        "Mul" => Some(x.wrapping_mul(y)),
        "Div" => x.checked_div(y),
        "Mod" => {
            let r = x.checked_rem(y)?;
            let floor = !fmod && r != 0 && (r < 0) != (y < 0);
            Some(if floor { r + y } else { r })
        }
        _ => Some(x.wrapping_pow(u32::try_from(y).ok()?)),
    }
}

/// The exponents of a `Pow` as the base's kind of number.
fn as_exponent(base: &Nums, exponent: Nums) -> Nums {
    match (base, exponent) {
        (Nums::F32(_), Nums::Int(v)) => Nums::F32(v.iter().map(|&x| x as f32).collect()),
        (Nums::F32(_), Nums::F64(v)) => Nums::F32(v.iter().map(|&x| x as f32).collect()),
        (Nums::F64(_), Nums::Int(v)) => Nums::F64(v.iter().map(|&x| x as f64).collect()),
        (Nums::F64(_), Nums::F32(v)) => Nums::F64(v.iter().map(|&x| f64::from(x)).collect()),
        (_, e) => e,
    }
}

fn variadic(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let dtype = cx.input(0)?.dtype();
    let mut acc = (cx.nums(0)?, dims_of(cx.input(0)?)?);
    for slot in 1..cx.inputs.len() {
        let (b, bd) = (cx.nums(slot)?, dims_of(cx.input(slot)?)?);
        let out = shape::broadcast(&acc.1, &bd)
            .filter(|_| acc.0.same_kind(&b))
            .ok_or_else(|| cx.invalid("the inputs differ in type or do not broadcast"))?;
        cx.room(dtype, &out)?;
        let p = Pair {
            a: acc.0,
            b,
            ad: acc.1,
            bd,
            out,
        };
        let nums = match (&p.a, &p.b) {
            (Nums::Int(a), Nums::Int(b)) => Nums::Int(p.zip(a, b, |x, y| match op {
                "Min" => x.min(y),
                "Max" => x.max(y),
                _ => x + y,
            })),
            (Nums::F32(a), Nums::F32(b)) => Nums::F32(p.zip(a, b, |x, y| match op {
                "Min" if !x.is_nan() && (y.is_nan() || y < x) => y,
                "Max" if !x.is_nan() && (y.is_nan() || y > x) => y,
                "Min" | "Max" => x,
                _ => x + y,
            })),
            (Nums::F64(a), Nums::F64(b)) => Nums::F64(p.zip(a, b, |x, y| match op {
                "Min" if !x.is_nan() && (y.is_nan() || y < x) => y,
                "Max" if !x.is_nan() && (y.is_nan() || y > x) => y,
                "Min" | "Max" => x,
                _ => x + y,
            })),
            _ => return Err(cx.invalid("the inputs differ in type")),
        };
        acc = (nums, p.out);
    }
    if op == "Mean" {
        let n = cx.inputs.len() as f32;
        match &mut acc.0 {
            Nums::F32(v) => v.iter_mut().for_each(|x| *x /= n),
            Nums::F64(v) => v.iter_mut().for_each(|x| *x /= f64::from(n)),
            Nums::Int(_) => return Err(cx.unsupported("integers")),
        }
    }
    cx.store(&acc.0, dtype, &acc.1)
}

fn compare(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let p = pair(cx, DataType::Bool)?;
    fn test<T: PartialOrd>(op: &str, x: T, y: T) -> i128 {
        i128::from(match op {
            "Equal" => x == y,
            "Less" => x < y,
            "LessOrEqual" => x <= y,
            "Greater" => x > y,
            _ => x >= y,
        })
    }
    let bits = match (&p.a, &p.b) {
        (Nums::Int(a), Nums::Int(b)) => p.zip(a, b, |x, y| test(op, x, y)),
        (Nums::F32(a), Nums::F32(b)) => p.zip(a, b, |x, y| test(op, x, y)),
        (Nums::F64(a), Nums::F64(b)) => p.zip(a, b, |x, y| test(op, x, y)),
        _ => return Err(cx.invalid("the inputs differ in type")),
    };
    cx.store(&Nums::Int(bits), DataType::Bool, &p.out)
}

fn logic(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let p = pair(cx, DataType::Bool)?;
    let (Nums::Int(a), Nums::Int(b)) = (&p.a, &p.b) else {
        return Err(cx.invalid("the inputs are not boolean"));
    };
    let bits = p.zip(a, b, |x, y| {
        let (x, y) = (x != 0, y != 0);
        i128::from(match op {
            "And" => x && y,
            "Or" => x || y,
            _ => x != y,
        })
    });
    cx.store(&Nums::Int(bits), DataType::Bool, &p.out)
}

fn map_bool(cx: &Ctx<'_>, f: impl Fn(&Nums) -> Option<Vec<i128>>) -> Result<Tensor, EvalError> {
    let dims = dims_of(cx.input(0)?)?;
    cx.room(DataType::Bool, &dims)?;
    let bits = f(&cx.nums(0)?).ok_or_else(|| cx.invalid("the input has the wrong type"))?;
    cx.store(&Nums::Int(bits), DataType::Bool, &dims)
}

fn cast(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let to = match cx.opt(1) {
        Some(like) => like.dtype(),
        None => cx
            .node
            .attr_i("to")
            .and_then(|n| DataType::from_number(i32::try_from(n).ok()?))
            .ok_or_else(|| cx.invalid("no type is given"))?,
    };
    if t.dtype() == to {
        return Ok(t.clone());
    }
    let dims = dims_of(t)?;
    cx.room(to, &dims)?;
    cx.store(&cx.nums(0)?, to, &dims)
}

fn choose(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let (c, x, y) = (Raw::read(cx, 0)?, Raw::read(cx, 1)?, Raw::read(cx, 2)?);
    if c.dtype != DataType::Bool || x.dtype != y.dtype {
        return Err(cx.invalid("the inputs have the wrong types"));
    }
    let dims = shape::broadcast(&x.dims, &y.dims)
        .and_then(|d| shape::broadcast(&d, &c.dims))
        .ok_or_else(|| cx.invalid("the inputs do not broadcast"))?;
    let count = cx.room(x.dtype, &dims)?;
    let [sc, sx, sy] = [&c, &x, &y].map(|t| broadcast_strides(&t.dims, &dims));
    let mut out = Vec::with_capacity(count * x.size);
    let walks = Walk::new(&dims, &sx, 0).zip(Walk::new(&dims, &sy, 0));
    for (k, (i, j)) in Walk::new(&dims, &sc, 0).zip(walks) {
        let (from, at) = if c.data[k] != 0 { (&x, i) } else { (&y, j) };
        out.extend_from_slice(&from.data[at * x.size..(at + 1) * x.size]);
    }
    Ok(Tensor::from_raw(x.dtype, &super::stored(&dims), out))
}

fn clip(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    cx.room(t.dtype(), &dims)?;
    let bound = |slot: usize, attr: &str| -> Result<Option<Nums>, EvalError> {
        if cx.opt(slot).is_some() {
            return cx.nums(slot).map(Some);
        }
        Ok(cx.node.attr_f(attr).map(|x| Nums::F32(vec![x])))
    };
    fn between<T: Copy + PartialOrd>(v: &mut [T], low: Option<&[T]>, high: Option<&[T]>) {
        for x in v {
            if let Some(&[l]) = low
                && *x < l
            {
                *x = l;
            }
            if let Some(&[h]) = high
                && *x > h
            {
                *x = h;
            }
        }
    }
    let (low, high) = (bound(1, "min")?, bound(2, "max")?);
    let mut nums = cx.nums(0)?;
    macro_rules! apply {
        ($kind:ident, $v:ident) => {{
            let part = |b: &Option<Nums>| match b {
                None => Ok(None),
                Some(Nums::$kind(b)) if b.len() == 1 => Ok(Some(b.clone())),
                Some(_) => Err(cx.invalid("a bound has the wrong type or shape")),
            };
            let (low, high) = (part(&low)?, part(&high)?);
            between($v, low.as_deref(), high.as_deref());
        }};
    }
    match &mut nums {
        Nums::Int(v) => apply!(Int, v),
        Nums::F32(v) => apply!(F32, v),
        Nums::F64(v) => apply!(F64, v),
    }
    cx.store(&nums, t.dtype(), &dims)
}

fn signs(cx: &Ctx<'_>, op: &str) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    cx.room(t.dtype(), &dims)?;
    let mut nums = cx.nums(0)?;
    macro_rules! float {
        ($v:ident) => {
            for x in $v {
                *x = match op {
                    "Neg" => -*x,
                    "Abs" => x.abs(),
                    "Relu" if *x < 0.0 => 0.0,
                    "Sign" if *x > 0.0 => 1.0,
                    "Sign" if *x < 0.0 => -1.0,
                    _ => *x,
                };
            }
        };
    }
    match &mut nums {
        Nums::Int(v) => {
            for x in v {
                *x = match op {
                    "Neg" => -*x,
                    "Abs" => x.abs(),
                    "Sign" => x.signum(),
                    _ => (*x).max(0),
                };
            }
        }
        Nums::F32(v) => float!(v),
        Nums::F64(v) => float!(v),
    }
    cx.store(&nums, t.dtype(), &dims)
}

type Functions = (fn(f32) -> f32, fn(f64) -> f64);

fn float_function(op: &str) -> Option<Functions> {
    Some(match op {
        "Sqrt" => (f32::sqrt, f64::sqrt),
        "Reciprocal" => (f32::recip, f64::recip),
        "Exp" => (f32::exp, f64::exp),
        "Log" => (f32::ln, f64::ln),
        "Floor" => (f32::floor, f64::floor),
        "Ceil" => (f32::ceil, f64::ceil),
        "Round" => (f32::round_ties_even, f64::round_ties_even),
        "Erf" => (|x| libm::erf(f64::from(x)) as f32, libm::erf),
        "Tanh" => (f32::tanh, f64::tanh),
        "Sigmoid" => (
            |x| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32,
            |x| 1.0 / (1.0 + (-x).exp()),
        ),
        "Sin" => (f32::sin, f64::sin),
        "Cos" => (f32::cos, f64::cos),
        _ => return None,
    })
}

fn function(
    cx: &Ctx<'_>,
    single: fn(f32) -> f32,
    double: fn(f64) -> f64,
) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    cx.room(t.dtype(), &dims)?;
    let nums = match cx.nums(0)? {
        Nums::F32(v) => Nums::F32(v.into_iter().map(single).collect()),
        Nums::F64(v) => Nums::F64(v.into_iter().map(double).collect()),
        Nums::Int(_) => return Err(cx.unsupported("integers")),
    };
    cx.store(&nums, t.dtype(), &dims)
}
