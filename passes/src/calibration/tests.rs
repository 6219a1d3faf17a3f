//! Merging, writing and reading of statistics.
#![expect(clippy::unwrap_used, reason = "tests")]

use onnx_quant_numerics::stats::Samples;

use super::*;

fn part(first: usize, end: usize) -> Calibration {
    let mut c = Calibration::new("sha256:0123456789abcdef".to_owned(), 10);
    c.engine = "tract".to_owned();
    c.notes = vec![format!("note {}", first % 2)];
    for key in ["a", "b/c"] {
        let mut stats = TensorStats::new(&[1]);
        for i in first..end {
            stats.observe(Samples::one(i as u64), &[1, 2], &[i as f32, -0.5]);
        }
        c.values.insert(key.to_owned(), stats);
    }
    c.count(first, end);
    c
}

fn bytes(c: &Calibration) -> Vec<u8> {
    let mut out = Vec::new();
    c.write(&mut out).unwrap();
    out
}

#[test]
fn parts_in_any_order_are_the_whole() {
    let mut whole = part(0, 10);
    whole.notes = vec!["note 0".to_owned(), "note 1".to_owned()];
    let parts = [part(0, 3), part(3, 4), part(4, 10)];
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let mut all = Calibration::new(whole.model.clone(), 10);
        all.engine.clone_from(&whole.engine);
        for i in order {
            all.merge(&parts[i]).unwrap();
        }
        assert_eq!(bytes(&all), bytes(&whole));
    }
}

#[test]
fn a_file_is_read_back() {
    let c = part(2, 7);
    let text = bytes(&c);
    let back = Calibration::read(&text).unwrap();
    assert_eq!(back, c);
    assert_eq!(bytes(&back), text);
    assert_eq!(String::from_utf8(text).unwrap().lines().count(), 13);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let refused = |change: &dyn Fn(&mut Calibration)| {
        let mut other = part(3, 5);
        change(&mut other);
        part(0, 3).merge(&other).unwrap_err().to_string()
    };
    let text = refused(&|c| c.model = "sha256:fedcba9876543210".to_owned());
    assert!(text.contains("another model"), "{text}");
    let text = refused(&|c| c.engine = "onnxruntime".to_owned());
    assert!(
        text.starts_with("was made with tract, not with onnxruntime"),
        "{text}"
    );
    assert!(refused(&|c| c.of = 11).contains("10 samples, not 11"));
    assert!(refused(&|c| c.data = "0".to_owned()).contains("of other data"));
    assert!(refused(&|c| *c = part(2, 5)).contains("samples 2 to 2 are in more than one part"));
    let text = refused(&|c| drop(c.values.remove("a")));
    assert!(text.starts_with("`a` was observed in one part"), "{text}");
}

#[test]
fn contradictory_files_are_refused() {
    for change in [
        |c: &mut Calibration| c.samples = 4,
        |c: &mut Calibration| c.of = 6,
        |c: &mut Calibration| c.parts = vec![(2, 4), (3, 6)],
        |c: &mut Calibration| c.parts = vec![(7, 7)],
        |c: &mut Calibration| c.format = "other".to_owned(),
    ] {
        let mut c = part(2, 7);
        change(&mut c);
        assert!(Calibration::read(&bytes(&c)).is_err());
    }
    assert!(Calibration::read(b"{").is_err());
    assert!(part(0, 1).check_model("sha256:1").is_err());
    assert!(part(0, 1).check_model("sha256:0123456789abcdef").is_ok());
    assert!(Calibration::default().check_model("sha256:1").is_ok());
}
