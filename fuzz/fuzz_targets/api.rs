//! Requests on the control socket: one line of JSON each. A call that was understood can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use usernet_control::api::message::{Call, Request, Response};

fuzz_target!(|data: &[u8]| {
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(request) = serde_json::from_slice::<Request>(line) else { continue };
        let outcome = Call::parse(&request.method, request.params);
        if let Ok(call) = &outcome {
            let again = Call::parse(call.method(), call.params());
            assert_eq!(again.as_ref(), Ok(call), "a call is read as it was written");
        }
        let answer = Response::new(request.id, outcome.map(|call| call.params()));
        let text = serde_json::to_string(&answer).expect("an answer can be written");
        assert!(!text.contains('\n'), "an answer is one line: {text}");
        serde_json::from_str::<Response>(&text).expect("an answer can be read");
    }
});
