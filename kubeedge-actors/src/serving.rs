//! An actix-web server that runs beside a component, and ends with it.

use actix_web::dev::{Server, ServerHandle};

/// A server that runs. Dropped, it is told to stop.
pub(crate) struct Serving(ServerHandle);

impl Serving {
    /// Runs it in this thread's actix system. `what` names it where its end is reported, when that is an error.
    pub(crate) fn begin(server: Server, what: &'static str) -> Self {
        let handle = server.handle();
        actix_rt::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!("{what} has ended: {error}");
            }
        });
        Self(handle)
    }

    /// Stops it, connections as well, and waits for its end.
    pub(crate) async fn stop(self) {
        self.0.stop(false).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The command is sent here; the future would only wait for its end.
        drop(self.0.stop(false));
    }
}
