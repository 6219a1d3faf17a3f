//! Speed of the inner loops, in values per second.
fn main() {
    divan::main();
}
