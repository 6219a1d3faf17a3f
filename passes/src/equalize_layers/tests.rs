//! Factors that were put in are taken out again.
#![expect(clippy::unwrap_used, reason = "tests")]

use onnx_quant_ir::pass::{Changed, Pass, PassContext};
use onnx_quant_ir::{Model, text};

use super::EqualizeLayers;

fn constant(model: &Model, name: &str) -> Vec<f32> {
    let value = model.find_value(name).unwrap();
    model.constant(value).unwrap().to_f32().unwrap()
}

#[test]
fn rescaled_channels_come_back_to_one_size() {
    let net = |w1: &str, b1: &str, w2: &str| {
        let text = format!(
            "main (float[1,1,2,2] X) => (float[1,1,2,2] Y)
<
  float[3,1,1,1] W1 = {{{w1}}},
  float[3] B1 = {{{b1}}},
  float[1,3,1,1] W2 = {{{w2}}}
>
{{
  [a] A = Conv (X, W1, B1)
  [b] R = Relu (A)
  [c] Y = Conv (R, W2)
}}"
        );
        text::parse(&text).unwrap()
    };
    let mut plain = net("1, 0.9, 1.1", "1, 2, 3", "1, 1, 1");
    let mut scaled = net("32, 0.0140625, 1.1", "32, 0.03125, 3", "0.03125, 64, 1");
    let mut cx = PassContext::default();
    assert_eq!(
        EqualizeLayers.run(&mut plain, &mut cx).unwrap(),
        Changed::No
    );
    assert_eq!(
        EqualizeLayers.run(&mut scaled, &mut cx).unwrap(),
        Changed::Yes
    );
    // The products are those of before, and all channels are of like size.
    let (w1, b1, w2) = (
        constant(&scaled, "W1"),
        constant(&scaled, "B1"),
        constant(&scaled, "W2"),
    );
    for (i, (w, b)) in [(1.0, 1.0), (0.9, 2.0), (1.1, 3.0)].into_iter().enumerate() {
        assert!((w1[i] * w2[i] - w).abs() < 1e-5);
        assert!((b1[i] * w2[i] - b).abs() < 1e-5);
    }
    for w in [&w1, &w2] {
        let (low, high) = w
            .iter()
            .fold((f32::MAX, 0.0f32), |(l, h), x| (l.min(*x), h.max(*x)));
        assert!(high / low < 1.2, "{w:?}");
    }
    assert_eq!(
        EqualizeLayers.run(&mut scaled, &mut cx).unwrap(),
        Changed::No
    );
}
