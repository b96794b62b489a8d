//! The clock: what the kernel knows about it, and how far signed callbacks are from it.

use std::io;
#[cfg(target_os = "linux")]
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
#[cfg(target_os = "linux")]
use nix::libc;

use super::relay;
use super::report::Area;
use crate::config::Loaded;

const SKEW_METRIC: &str = "recall_callback_clock_skew_seconds";

/// What to do if the clock is wrong.
const SET_CLOCK: &str =
    "run an NTP client, such as chrony or systemd-timesyncd; for a container, on its host";

/// What the kernel knows about its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KernelClock {
    is_synchronised: bool,
    /// How wrong it may be at most, by its own estimate.
    max_error: Duration,
}

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    match kernel_clock() {
        Ok(clock) if clock.is_synchronised => {
            let error = clock.max_error;
            let text = format!("synchronised; its error is {error:.1?} at most");
            area.ok("kernel", text).await;
        }
        Ok(_) => {
            let text =
                "not known to be synchronised: if the clock is wrong, signatures seem to be stale";
            area.warning("kernel", text, SET_CLOCK).await;
        }
        Err(error) => {
            let text = format!("the kernel does not show whether it is synchronised: {error}");
            area.warning("kernel", text, SET_CLOCK).await;
        }
    }
    let max_skew = *loaded.config.auth.max_skew;
    let untried = match relay::page(&loaded, "/metrics").await {
        Ok(Some((StatusCode::OK, metrics))) => {
            if let Some(skew) = skew(&metrics) {
                return report_skew(&area, skew, max_skew).await;
            }
            "the running relay has received no signed callback yet".to_owned()
        }
        Ok(Some((status, _))) => format!("the running relay answered {status} for /metrics"),
        Ok(None) => "no relay runs here that has received signed callbacks".to_owned(),
        // The area `relay` reports it, too.
        Err(reason) => reason,
    };
    area.untried("callbacks", untried).await;
}

async fn report_skew(area: &Area, skew: f64, max_skew: Duration) {
    // `RequestTime` is in whole seconds.
    let beyond = skew.abs() - 1.0;
    let limit = max_skew.as_secs_f64();
    let text = format!(
        "RequestTime of the last signed callback was {skew:+.1} s from this clock; auth.max_skew is {limit} s"
    );
    // Never a failure: anyone who has seen an old callback can send it again.
    if beyond > limit / 2.0 {
        let text =
            format!("{text}: that callback came late or was sent again, or a clock is wrong");
        let action = format!("if the next callbacks show the same, {SET_CLOCK}");
        area.warning("callbacks", text, action).await;
    } else {
        area.ok("callbacks", text).await;
    }
}

/// The skew in seconds, in what `/metrics` answers.
fn skew(metrics: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(SKEW_METRIC)?.trim().parse().ok();
    metrics.lines().find_map(value)
}

/// Asks the kernel.
#[cfg(not(target_os = "linux"))]
fn kernel_clock() -> io::Result<KernelClock> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Asks the kernel.
#[cfg(target_os = "linux")]
fn kernel_clock() -> io::Result<KernelClock> {
    let mut clock = MaybeUninit::<libc::timex>::zeroed();
    // Without a `mode`, it sets nothing.
    #[expect(
        unsafe_code,
        reason = "no crate that is used here has a safe form of it"
    )]
    // SAFETY: a `timex` of zeros is valid, and the kernel writes to nothing else.
    let (state, clock) = unsafe {
        let state = libc::adjtimex(clock.as_mut_ptr());
        (state, clock.assume_init())
    };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(KernelClock::of(state, clock.status, clock.maxerror))
}

#[cfg(target_os = "linux")]
impl KernelClock {
    /// From what `adjtimex` returns: the state, the status, and the maximum error in microseconds.
    fn of(state: i32, status: i32, max_error: i64) -> Self {
        Self {
            is_synchronised: state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0,
            max_error: Duration::from_micros(u64::try_from(max_error).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_synchronised_if_the_kernel_says_nothing_else() {
        let is_synchronised = |state, status| KernelClock::of(state, status, 1500).is_synchronised;
        assert!(is_synchronised(libc::TIME_OK, libc::STA_PLL));
        assert!(is_synchronised(libc::TIME_INS, libc::STA_INS));
        assert!(!is_synchronised(libc::TIME_ERROR, libc::STA_PLL));
        assert!(!is_synchronised(libc::TIME_OK, libc::STA_UNSYNC));
        let clock = KernelClock::of(libc::TIME_OK, 0, 1500);
        assert_eq!(clock.max_error, Duration::from_micros(1500));
    }

    #[test]
    fn the_skew_is_read_from_the_metrics() {
        let metrics = "# TYPE recall_callback_clock_skew_seconds gauge\nrecall_callback_clock_skew_seconds -12.25\n";
        assert_eq!(skew(metrics), Some(-12.25));
        assert_eq!(skew("# HELP recall_callback_clock_skew_seconds x\n"), None);
    }
}
