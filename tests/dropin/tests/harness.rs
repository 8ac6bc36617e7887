//! The harness itself: what the other tests rely on.

use usernet_dropin::tool::{Known, run};
use usernet_dropin::{Kind, Tool, both_tools};
use usernet_lab::Lab;

both_tools! { "slirp4netns";
    fn a_tool_is_alone_in_its_folder_and_answers_to_its_name(tool) needs [] {
        let lab = Lab::new();
        let path = tool.path(&lab);
        assert_eq!(std::fs::read_dir(tool.folder(&lab)).unwrap().count(), 1);
        let help = lab.host().run(&[&path, "--help"]).ok();
        assert!(help.contains("Usage:"), "{help}");
    }

    fn what_the_original_is_known_to_fail_is_run_and_fails(tool) needs []
    reference_fails("it is not ours", says "a reference") {
        assert_eq!(tool.kind, Kind::Ours, "not a reference");
    }
}

const ORIGINAL: Tool = Tool { name: "sh", kind: Kind::Reference };

#[test]
#[should_panic(expected = "is known to fail")]
fn an_original_that_has_been_repaired_is_noticed() {
    run("repaired", ORIGINAL, &[], Known::Fails { why: "of a bug", says: "bug" }, |_| ());
}

#[test]
#[should_panic(expected = "but not because of a bug")]
fn an_original_that_fails_for_another_reason_is_noticed() {
    let known = Known::Fails { why: "of a bug", says: "the bug" };
    run("failing", ORIGINAL, &[], known, |_| panic!("something else"));
}

#[test]
fn an_original_that_races_may_pass_and_fail_as_is_known() {
    let known = Known::Races { why: "of a race", says: "too late" };
    run("quick", ORIGINAL, &[], known, |_| ());
    run("slow", ORIGINAL, &[], known, |_| panic!("too late"));
}

#[test]
#[should_panic(expected = "but not because of a race")]
fn an_original_that_races_and_fails_for_another_reason_is_noticed() {
    let known = Known::Races { why: "of a race", says: "too late" };
    run("failing", ORIGINAL, &[], known, |_| panic!("something else"));
}
