//! Ranks that are threads.

use std::thread;

use ringattn::*;

/// Runs `f` on a thread for each rank of a new group, and gives what they return.
pub fn on_ranks<T: Send>(world_size: i32, f: impl Fn(Context, i32) -> T + Sync) -> Vec<T> {
    let id = UniqueId::new(Transport::Local, None).unwrap();
    let config = &ContextConfig::new()
        .world_size(world_size)
        .unique_id(&id)
        .num_threads(1);
    let f = &f;
    thread::scope(|scope| {
        let run =
            |rank| scope.spawn(move || f(Context::new(&config.clone().rank(rank)).unwrap(), rank));
        let ranks: Vec<_> = (0..world_size).map(run).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
