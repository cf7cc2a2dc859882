//! The corpus of the fuzz targets, replayed: what they once found stays mended without them. The two documents are
//! replayed where they are, in the programs.

use std::{collections::BTreeSet, fs, path::Path};

#[allow(unreachable_pub)]
#[path = "../../fuzz/src/session.rs"]
mod session;
#[allow(dead_code, unreachable_pub)]
#[path = "../../fuzz/src/text.rs"]
mod text;

/// A folder of the corpus, and what is done with its files.
type Target = (&'static str, fn(&[u8]));

#[test]
fn every_file_of_the_corpus_is_replayed_and_none_breaks_its_target() {
    let targets: [Target; 4] =
        [("frame", session::frame), ("inventory", session::inventory), ("token", text::token), ("csr", text::csr)];
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let names = |folder: &Path| -> BTreeSet<String> {
        let files = fs::read_dir(folder).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    };
    let replayed: BTreeSet<String> =
        targets.iter().map(|(name, _)| (*name).to_owned()).chain(["config".into()]).collect();
    assert_eq!(names(&corpus), replayed, "a target without a replay, or the reverse");
    for (target, replay) in targets {
        let files = names(&corpus.join(target));
        assert!(files.len() >= 4, "{target}: {files:?}");
        for file in files {
            println!("{target}/{file}");
            replay(&fs::read(corpus.join(target).join(&file)).unwrap());
        }
    }
}
