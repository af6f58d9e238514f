//! One in-order stream: the host puts commands into a bounded ring and the pool's threads run them.
//! Graphs are replayed by one command.
//!
//! Host side: one thread at a time (api/ sees to that). Device side: the pool's driver. They share
//! the ring's two counters, which are compared by difference and so may wrap.
const std = @import("std");
const os = @import("../core/os.zig");
const errors = @import("../core/errors.zig");
const kernel_mod = @import("kernel.zig");
const command_mod = @import("command.zig");
const pool_mod = @import("pool.zig");

pub const Command = command_mod.Command;
pub const Graph = command_mod.Graph;
pub const Event = command_mod.Event;

/// Far more than the ops of a model's step, so that the host seldom waits; a power of two, so that
/// wrapped counters find their slot.
const ring_commands = 512;
const staging_bytes = 1 << 20;
/// The largest piece of a write: several fit the staging ring, so that copying in and out overlap.
const write_bytes = staging_bytes / 4;

pub const Executor = struct {
    gpa: std.mem.Allocator,
    pool: pool_mod.Pool(Executor),
    ring: []Command,
    staging: os.Bytes,

    // The host's.
    enqueued: std.atomic.Value(u32) align(std.atomic.cache_line) = .init(0),
    staging_head: u64 = 0,
    recording: ?*Graph = null,
    waiting: std.atomic.Value(u32) = .init(0),
    wait_target: std.atomic.Value(u32) = .init(0),

    // The driver's.
    completed: os.Word align(std.atomic.cache_line) = .init(0),
    staging_tail: std.atomic.Value(u64) = .init(0),
    graph: ?*const Graph = null,
    graph_position: usize = 0,
    kernel: ?*const kernel_mod.Kernel = null,
    phase_index: u32 = 0,
    /// The running kernel's descriptor; `plan` may change it, a recorded one must stay as it is.
    desc: [command_mod.max_desc_bytes]u8 align(64) = undefined,

    pub fn create(gpa: std.mem.Allocator, threads: u32) errors.Error!*Executor {
        const self = try gpa.create(Executor);
        errdefer gpa.destroy(self);
        const ring = try gpa.alloc(Command, ring_commands);
        errdefer gpa.free(ring);
        const staging = try os.mapMemory(staging_bytes);
        errdefer os.unmapMemory(staging);
        self.* = .{ .gpa = gpa, .pool = undefined, .ring = ring, .staging = staging };
        self.pool.start(gpa, self, threads) catch |err| return switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            error.Unavailable => errors.fail(
                error.Unavailable,
                "expected to start {d} threads, the system refused",
                .{threads},
            ),
        };
        return self;
    }

    /// Not while recording.
    pub fn destroy(self: *Executor) void {
        self.sync();
        self.pool.stop(self.gpa);
        os.unmapMemory(self.staging);
        self.gpa.free(self.ring);
        self.gpa.destroy(self);
    }

    pub fn threadCount(self: *const Executor) u32 {
        return @intCast(self.pool.threads.len);
    }

    // Host side.

    pub fn enqueueKernel(
        self: *Executor,
        kernel: *const kernel_mod.Kernel,
        desc: anytype,
    ) errors.Error!void {
        const bytes = @sizeOf(@TypeOf(desc.*));
        comptime std.debug.assert(bytes <= command_mod.max_desc_bytes);
        const slot = if (self.recording) |graph| try graph.add() else self.freeSlot();
        slot.* = .{ .kernel = .{ .kernel = kernel, .bytes = bytes, .desc = undefined } };
        @memcpy(slot.kernel.desc[0..bytes], std.mem.asBytes(desc));
        if (self.recording == null) self.push();
    }

    pub fn enqueueMark(self: *Executor, event: *Event) errors.Error!void {
        if (self.recording) |graph| return graph.addMark(event);
        event.enqueued +%= 1;
        return self.enqueue(.{ .mark = event });
    }

    /// Copies `bytes` before it returns.
    pub fn enqueueWrite(self: *Executor, destination: u64, bytes: []const u8) errors.Error!void {
        if (self.recording) |graph| return graph.addWrite(destination, bytes);
        var at: usize = 0;
        while (at < bytes.len) {
            const piece = bytes[at..][0..@min(write_bytes, bytes.len - at)];
            const source = self.stage(piece);
            try self.enqueue(.{ .write = .{
                .destination = destination + at,
                .source = source,
                .bytes = piece.len,
                .staging_end = self.staging_head,
            } });
            at += piece.len;
        }
    }

    pub fn enqueueLaunch(self: *Executor, graph: *const Graph) errors.Error!void {
        graph.countMarks();
        return self.enqueue(.{ .launch = graph });
    }

    /// For the commands that need nothing done at the call.
    pub fn enqueue(self: *Executor, command: Command) errors.Error!void {
        if (self.recording) |graph| {
            (try graph.add()).* = command;
        } else {
            self.freeSlot().* = command;
            self.push();
        }
    }

    pub fn beginGraph(self: *Executor) errors.Error!void {
        const graph = try self.gpa.create(Graph);
        graph.* = .{ .gpa = self.gpa };
        self.recording = graph;
    }

    pub fn endGraph(self: *Executor) *Graph {
        defer self.recording = null;
        return self.recording.?;
    }

    pub fn freeGraph(gpa: std.mem.Allocator, graph: *Graph) void {
        graph.deinit();
        gpa.destroy(graph);
    }

    pub fn sync(self: *Executor) void {
        self.waitFor(self.enqueued.load(.monotonic));
    }

    fn freeSlot(self: *Executor) *Command {
        const enqueued = self.enqueued.load(.monotonic);
        if (enqueued -% self.completed.load(.acquire) == ring_commands) {
            // Half a ring at once: waking the host for each slot would cost more than the slot is
            // worth.
            self.waitFor(enqueued -% ring_commands / 2);
        }
        return &self.ring[enqueued % ring_commands];
    }

    fn push(self: *Executor) void {
        self.enqueued.store(self.enqueued.load(.monotonic) +% 1, .seq_cst);
        self.pool.notify();
    }

    /// A copy of `bytes` in the staging ring, in one piece.
    fn stage(self: *Executor, bytes: []const u8) [*]const u8 {
        const offset = self.staging_head % staging_bytes;
        if (offset + bytes.len > staging_bytes) self.staging_head += staging_bytes - offset;
        const used = self.staging_head - self.staging_tail.load(.acquire);
        if (used + bytes.len > staging_bytes) self.sync();
        const place = self.staging[self.staging_head % staging_bytes ..][0..bytes.len];
        @memcpy(place, bytes);
        self.staging_head += bytes.len;
        return place.ptr;
    }

    fn waitFor(self: *Executor, target: u32) void {
        self.wait_target.store(target, .monotonic);
        self.waiting.store(1, .seq_cst);
        defer self.waiting.store(0, .monotonic);
        while (true) {
            const completed = self.completed.load(.seq_cst);
            if (reached(completed, target)) return;
            os.wait(&self.completed, completed);
        }
    }

    fn reached(counter: u32, target: u32) bool {
        return @as(i32, @bitCast(counter -% target)) >= 0;
    }

    // Device side, called by the pool.

    pub fn pending(self: *Executor) bool {
        return self.enqueued.load(.seq_cst) != self.completed.load(.seq_cst);
    }

    /// The next phase that has items. Everything before it is finished when this is called.
    pub fn next(self: *Executor) ?pool_mod.Phase {
        while (true) {
            if (self.nextPhase()) |phase| return phase;
            const command = self.nextCommand() orelse return null;
            switch (command.*) {
                .kernel => |*kernel| {
                    @memcpy(self.desc[0..kernel.bytes], kernel.desc[0..kernel.bytes]);
                    self.kernel = kernel.kernel;
                    self.phase_index = 0;
                    continue;
                },
                .launch => |graph| {
                    self.graph = graph;
                    self.graph_position = 0;
                    continue;
                },
                .mark => |event| event.mark(),
                .timestamp => |address| {
                    @as(*f64, @ptrFromInt(address)).* = @floatFromInt(os.nanoseconds());
                },
                .write => |write| {
                    @memcpy(bytesAt(write.destination, write.bytes), write.source);
                    if (write.staging_end) |end| self.staging_tail.store(end, .release);
                },
                .fill => |fill| @memset(bytesAt(fill.destination, fill.bytes), fill.byte),
                .release => |word| _ = word.fetchSub(1, .release),
            }
            self.finishCommand();
        }
    }

    fn nextPhase(self: *Executor) ?pool_mod.Phase {
        const kernel = self.kernel orelse return null;
        while (self.phase_index < kernel.phase_count) {
            const phase = kernel.phases[self.phase_index];
            self.phase_index += 1;
            const items = phase.plan(&self.desc, self.threadCount());
            if (items != 0) return .{ .run = phase.run, .desc = &self.desc, .items = items };
        }
        self.kernel = null;
        self.finishCommand();
        return null;
    }

    fn nextCommand(self: *Executor) ?*const Command {
        if (self.graph) |graph| {
            const commands = graph.commands.items;
            if (self.graph_position < commands.len) return &commands[self.graph_position];
            self.graph = null;
            self.finishCommand();
        }
        if (!self.pending()) return null;
        return &self.ring[self.completed.load(.monotonic) % ring_commands];
    }

    /// Moves on by one: within the graph where one is running, else in the ring.
    fn finishCommand(self: *Executor) void {
        if (self.graph != null) {
            self.graph_position += 1;
            return;
        }
        const completed = self.completed.load(.monotonic) +% 1;
        self.completed.store(completed, .seq_cst);
        if (self.waiting.load(.seq_cst) != 0 and reached(
            completed,
            self.wait_target.load(.monotonic),
        )) {
            os.wake(&self.completed, std.math.maxInt(u32));
        }
    }
};

fn bytesAt(address: u64, bytes: usize) []u8 {
    return @as([*]u8, @ptrFromInt(address))[0..bytes];
}
