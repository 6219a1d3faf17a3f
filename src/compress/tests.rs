//! Files survive, every change of a byte is found, and what comes back is the clustered model.
#![expect(clippy::unwrap_used, reason = "tests")]

use onnx_quant_ir::text;
use onnx_quant_numerics::random::bits;
use proptest::prelude::*;

use super::block::{BlockReader, BlockWriter};
use super::container::{Clustered, initializers, read, write};
use super::*;

const MODEL: &str = r#"
<ir_version: 10, opset_import: ["" : 21]>
main (float[1,2,6,6] X) => (float[1,4,6,6] Y)
<
  float[4,2,3,3] W = random(1),
  float[4] B = random(2),
  float16[4,20] H = random(5)
>
{
  [conv] Y = Conv <pads = [1, 1, 1, 1]> (X, W, B)
}
"#;

/// A model, its weights as codes, and the model that they decode to.
fn small() -> (Model, Vec<Clustered>) {
    let mut model = text::parse(MODEL).unwrap();
    let mut weights = Vec::new();
    let mut proto = save::inlined(&model).unwrap();
    let names: Vec<String> = initializers(&mut proto)
        .iter()
        .map(|t| t.name().to_owned())
        .collect();
    for (place, name) in names.iter().enumerate().filter(|(_, n)| *n != "B") {
        let value = model.values_by_name(Model::MAIN)[name.as_str()];
        let tensor = model.constant(value).unwrap().clone();
        let count = tensor.element_count().unwrap();
        let codebook = vec![-1.5f32, 0.0, 0.25, 3.0];
        let codes: Vec<u8> = (0..count)
            .map(|i| {
                if i % 3 == 0 {
                    (bits(1, i as u64) % 4) as u8
                } else {
                    1
                }
            })
            .collect();
        let data: Vec<f32> = codes.iter().map(|&c| codebook[usize::from(c)]).collect();
        let decoded = Tensor::from_f32_as(tensor.dtype(), tensor.dims(), &data).unwrap();
        model.set_initializer(value, decoded);
        weights.push(Clustered {
            place,
            bits: 2,
            zero: Some(1),
            codebook,
            codes,
        });
    }
    (model, weights)
}

fn about() -> About {
    About {
        tool: "test".to_owned(),
        weights: "kmeans2".to_owned(),
        sparsity: 0.5,
        fine_tuned: false,
    }
}

fn file(choice: CoderChoice) -> (Model, Vec<u8>) {
    let (model, weights) = small();
    let mut out = Vec::new();
    let proto = save::inlined(&model).unwrap();
    let parts = write(&mut out, proto, &weights, &about(), choice).unwrap();
    assert_eq!(parts.file, out.len() as u64);
    (model, out)
}

#[test]
fn the_model_comes_back_bit_for_bit() {
    for choice in [
        CoderChoice::Auto,
        CoderChoice::Huffman,
        CoderChoice::Range,
        CoderChoice::None,
    ] {
        let (model, data) = file(choice);
        let (back, said) = read(&data[..]).unwrap();
        assert_eq!(said, about());
        assert_eq!(
            save::to_bytes(&back).unwrap(),
            save::to_bytes(&model).unwrap(),
            "{choice}"
        );
    }
}

#[test]
fn every_changed_byte_and_every_cut_is_found() {
    let (_, data) = file(CoderChoice::Auto);
    assert!(data.len() < 4000, "{} bytes", data.len());
    for at in 0..data.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = data.clone();
            bad[at] ^= flip;
            assert!(read(&bad[..]).is_err(), "byte {at} ^ {flip:#x}");
        }
        assert!(read(&data[..at]).is_err(), "cut at {at}");
    }
    let mut longer = data.clone();
    longer.push(0);
    assert!(matches!(read(&longer[..]), Err(BlockError::Trailing)));
}

#[test]
fn blocks_cannot_be_swapped_left_out_or_repeated() {
    let (_, data) = file(CoderChoice::Auto);
    let mut blocks = Vec::new();
    let mut at = 9;
    while at < data.len() {
        let length = u32::from_le_bytes(data[at + 1..at + 5].try_into().unwrap()) as usize;
        blocks.push(&data[at..at + 9 + length]);
        at += 9 + length;
    }
    let join = |order: Vec<usize>| -> Vec<u8> {
        let parts = order.into_iter().flat_map(|i| blocks[i].iter().copied());
        data[..9].iter().copied().chain(parts).collect()
    };
    let n = blocks.len();
    assert!(read(&join((0..n).collect())[..]).is_ok());
    for i in 0..n - 1 {
        let mut swapped: Vec<usize> = (0..n).collect();
        swapped.swap(i, i + 1);
        assert!(read(&join(swapped)[..]).is_err(), "swapped {i}");
        let without = (0..n).filter(|&j| j != i).collect();
        assert!(read(&join(without)[..]).is_err(), "without {i}");
        let twice = (0..=i).chain(i..n).collect();
        assert!(read(&join(twice)[..]).is_err(), "twice {i}");
    }
}

/// A file whose checksums fit, whatever its blocks say.
fn sealed(blocks: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = BlockWriter::new(&mut out).unwrap();
    for (kind, payload) in blocks {
        writer.block(*kind, payload).unwrap();
    }
    out
}

fn blocks_of(data: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut reader = BlockReader::new(data).unwrap();
    let mut found = Vec::new();
    while let Ok(block) = reader.block() {
        found.push((block.kind, block.payload));
    }
    found
}

proptest! {
    #[test]
    fn contradictions_with_fitting_checksums_are_errors(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8,
        cut in any::<prop::sample::Index>(), choice in 0usize..3,
    ) {
        let choice = [CoderChoice::Huffman, CoderChoice::Range, CoderChoice::None][choice];
        let (model, data) = file(choice);
        let blocks = blocks_of(&data);
        let which = which.index(blocks.len());
        let mut changed = blocks.clone();
        let payload = &mut changed[which].1;
        let place = at.index(payload.len());
        payload[place] = byte;
        // What does not change the model may stay unseen: what the file says of itself, and hints that a method ignores.
        if let Ok((found, _)) = read(&sealed(&changed)[..]) {
            let bytes = |m: &Model| save::to_bytes(m).unwrap();
            prop_assert_eq!(bytes(&found), bytes(&model), "block {} at {}", which, place);
        }
        let mut shorter = blocks.clone();
        let length = cut.index(shorter[which].1.len());
        shorter[which].1.truncate(length);
        prop_assert!(read(&sealed(&shorter)[..]).is_err(), "block {which} cut to {length}");
    }

    #[test]
    fn noise_is_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(read(&data[..]).is_err());
        let mut marked = block::MARK.to_vec();
        marked.push(block::VERSION);
        marked.extend(&data);
        prop_assert!(read(&marked[..]).is_err());
    }
}

#[test]
fn other_files_and_versions_are_named() {
    let message = |data: &[u8]| read(data).unwrap_err().to_string();
    assert!(message(b"").contains("not an .oqz file"));
    assert!(message(b"some text that is long enough").contains("not an .oqz file"));
    let (_, mut data) = file(CoderChoice::Auto);
    data[8] = 2;
    assert!(message(&data).contains("version 2"), "{}", message(&data));
}
