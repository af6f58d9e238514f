//! A fixed set of threads that run phases one after another, each phase cut into items that any
//! thread may take.
//!
//! How a phase runs
//!  - One thread at a time is the driver: it asks the source for the next phase and publishes it.
//!    Whoever completes the last item of a phase is the driver of the next, so no thread waits for
//!    another one to notice that a phase is over.
//!  - `work` holds phase number << 32 | items not yet claimed. Claiming an item is one
//!    compare-and-swap that takes 1 off.
//!  - `done` counts finished items. A thread adds what it ran once it finds nothing more to claim.
//!
//! Why a late thread can do no harm
//!  - A thread that read `work` and was then taken off its core may come back in a later phase. Its
//!    compare-and-swap fails, because the phase number in the word has moved on (it repeats after
//!    2^32 phases, an hour at best).
//!  - `phase` is read only after a claim succeeded. From then on that phase cannot end before this
//!    thread has added to `done`, so neither `phase` nor the descriptor behind it changes
//!    meanwhile. For the same reason every claim that a thread makes before it adds to `done`
//!    belongs to one and the same phase.
//!  - A thread that the system takes away holds up the one item that it has; the others run all the
//!    rest, then go to sleep, which frees a core for it.
//!
//! Why no wake-up is lost: a sleeper raises `sleepers` and then looks for work once more; whoever
//! makes work looks at `sleepers` afterwards. Both in sequentially consistent order, so at least
//! one of them sees the other; and a wake-up that comes between the last look and the wait has
//! changed `wakes`, so the wait returns at once.
const std = @import("std");
const os = @import("../core/os.zig");
const kernel_mod = @import("kernel.zig");

/// How long an idle thread looks for work before it sleeps: phases of one step follow each other
/// within this time, and waking a sleeper costs about as much. Longer would keep a core from
/// whoever else needs it.
const spin_ns = 30 * std.time.ns_per_us;
/// Looks between two readings of the clock.
const spin_batch = 32;

pub const Phase = struct {
    run: kernel_mod.Run,
    desc: *const anyopaque,
    items: u32,
};

/// `Source` gives the work: `pending(*Source) bool` from any thread, and for the driver
/// `next(*Source) ?Phase`, which is called when everything that it gave before is finished.
pub fn Pool(comptime Source: type) type {
    return struct {
        const Self = @This();
        const line = std.atomic.cache_line;

        work: std.atomic.Value(u64) align(line) = .init(0),
        done: std.atomic.Value(u32) align(line) = .init(0),
        /// Written by the driver between phases.
        phase: Phase align(line) = undefined,
        /// 1 while some thread is the driver or a phase is running.
        driving: std.atomic.Value(u32) align(line) = .init(0),
        wakes: os.Word align(line) = .init(0),
        sleepers: std.atomic.Value(u32) = .init(0),
        stopping: std.atomic.Value(u32) = .init(0),
        source: *Source,
        threads: []os.Thread,
        scratch: os.Bytes,

        pub fn start(
            self: *Self,
            gpa: std.mem.Allocator,
            source: *Source,
            count: u32,
        ) error{ OutOfMemory, Unavailable }!void {
            const threads = try gpa.alloc(os.Thread, count);
            errdefer gpa.free(threads);
            const scratch = try os.mapMemory(count * kernel_mod.scratch_bytes);
            errdefer os.unmapMemory(scratch);
            self.* = .{ .source = source, .threads = threads, .scratch = scratch };
            for (threads, 0..) |*thread, i| {
                thread.* = os.spawn(worker, .{ self, i }) catch |err| {
                    self.stopThreads(threads[0..i]);
                    return err;
                };
            }
        }

        /// Only when the source has nothing pending.
        pub fn stop(self: *Self, gpa: std.mem.Allocator) void {
            self.stopThreads(self.threads);
            os.unmapMemory(self.scratch);
            gpa.free(self.threads);
        }

        fn stopThreads(self: *Self, threads: []os.Thread) void {
            self.stopping.store(1, .seq_cst);
            self.wake(std.math.maxInt(u32));
            for (threads) |thread| thread.join();
        }

        /// The source has something new. A driver finds it by itself.
        pub fn notify(self: *Self) void {
            if (self.driving.load(.seq_cst) == 0) self.wakeFor(1);
        }

        /// Sees to it that `wanted` threads look for work; those that are awake do so anyway.
        fn wakeFor(self: *Self, wanted: u32) void {
            const sleepers = self.sleepers.load(.seq_cst);
            const threads: u32 = @intCast(self.threads.len);
            const missing = @min(wanted, threads) -| (threads -| sleepers);
            if (missing != 0) self.wake(missing);
        }

        fn wake(self: *Self, count: u32) void {
            _ = self.wakes.fetchAdd(1, .seq_cst);
            os.wake(&self.wakes, count);
        }

        fn worker(self: *Self, index: usize) void {
            os.nameThisThread("magicdec");
            const scratch: kernel_mod.Scratch = .{
                .data = @alignCast(self.scratch.ptr + index * kernel_mod.scratch_bytes),
                .bytes = kernel_mod.scratch_bytes,
            };
            while (self.stopping.load(.acquire) == 0) {
                if (self.participate(&scratch) or self.becomeDriver()) {
                    self.drive(&scratch);
                } else {
                    self.idle();
                }
            }
        }

        fn becomeDriver(self: *Self) bool {
            if (self.driving.load(.seq_cst) != 0 or !self.source.pending()) return false;
            return self.driving.cmpxchgStrong(0, 1, .seq_cst, .monotonic) == null;
        }

        /// Runs phases until another thread completes one, or nothing is left.
        fn drive(self: *Self, scratch: *const kernel_mod.Scratch) void {
            while (true) {
                const phase = self.source.next() orelse {
                    self.driving.store(0, .seq_cst);
                    // What came after `next` looked was not announced, because there was a driver.
                    if (self.becomeDriver()) continue;
                    return;
                };
                if (phase.items == 1 or self.threads.len == 1) {
                    for (0..phase.items) |item| phase.run(phase.desc, @intCast(item), scratch);
                    continue;
                }
                self.publish(phase);
                if (!self.participate(scratch)) return;
            }
        }

        fn publish(self: *Self, phase: Phase) void {
            self.phase = phase;
            self.done.store(0, .monotonic);
            const number = (self.work.load(.monotonic) >> 32) +% 1;
            self.work.store(number << 32 | phase.items, .seq_cst);
            self.wakeFor(phase.items);
        }

        /// Runs items until none is left to claim. True for the one thread that completed the
        /// phase.
        fn participate(self: *Self, scratch: *const kernel_mod.Scratch) bool {
            var left = self.claim() orelse return false;
            const phase = self.phase;
            var finished: u32 = 0;
            while (true) {
                phase.run(phase.desc, phase.items - left, scratch);
                finished += 1;
                left = self.claim() orelse break;
            }
            return self.done.fetchAdd(finished, .acq_rel) + finished == phase.items;
        }

        /// The number of items that were left, the claimed one included.
        fn claim(self: *Self) ?u32 {
            var word = self.work.load(.acquire);
            while (itemsLeft(word) != 0) {
                word = self.work.cmpxchgWeak(
                    word,
                    word - 1,
                    .acquire,
                    .acquire,
                ) orelse return itemsLeft(word);
            }
            return null;
        }

        fn itemsLeft(word: u64) u32 {
            return @truncate(word);
        }

        fn ready(self: *Self) bool {
            if (itemsLeft(
                self.work.load(.seq_cst),
            ) != 0 or self.stopping.load(.seq_cst) != 0) return true;
            return self.driving.load(.seq_cst) == 0 and self.source.pending();
        }

        /// Returns when there may be something to do.
        fn idle(self: *Self) void {
            const end = os.nanoseconds() + spin_ns;
            while (true) {
                for (0..spin_batch) |_| {
                    if (self.ready()) return;
                    std.atomic.spinLoopHint();
                }
                if (os.nanoseconds() >= end) break;
            }
            const seen = self.wakes.load(.seq_cst);
            _ = self.sleepers.fetchAdd(1, .seq_cst);
            if (!self.ready()) os.wait(&self.wakes, seen);
            _ = self.sleepers.fetchSub(1, .seq_cst);
        }
    };
}
