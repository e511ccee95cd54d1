//! Fault points: where tests end the program, or let a step fail. A release has none.

use super::Failure;

/// Named in the environment's `PGTENANT_FAULT`, a list with commas: the program is killed here; or, with `:fail` behind it,
/// the step fails.
#[cfg(debug_assertions)]
pub(crate) fn point(act: &str, place: &str) -> Result<(), Failure> {
    let Ok(wanted) = std::env::var("PGTENANT_FAULT") else { return Ok(()) };
    let here = format!("{act}:{place}");
    for wanted in wanted.split(',') {
        if wanted == here {
            // SAFETY: a signal to ourselves; nothing is shared.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        if wanted.strip_suffix(":fail") == Some(&here) {
            return Err(Failure::Fault(here));
        }
    }
    Ok(())
}

#[cfg(not(debug_assertions))]
pub(crate) fn point(_: &str, _: &str) -> Result<(), Failure> {
    Ok(())
}
