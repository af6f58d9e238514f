//! What a CPU kernel is: one or more phases, each cut into items that any thread may run in any order.
//!
//! The executor (executor.zig) calls `plan` once, on one thread, when everything enqueued before has finished (so lengths in device memory
//! are final), then `run` for items 0 .. n - 1 from all threads, then goes on to the next phase. Items are claimed one by one, so a thread
//! that the operating system takes away holds up at most the item it has. Items must write disjoint memory, and an item's result
//! must not depend on which thread runs it or on the number of threads.
const types = @import("../abi/types.zig");

/// Private to a thread while an item runs; contents do not survive the item. 64-byte aligned.
pub const Scratch = extern struct {
    data: [*]align(64) u8,
    bytes: usize,
};

/// Bytes of scratch that every thread has.
pub const scratch_bytes: usize = 1 << 20;

/// `desc` is the command's own copy of the descriptor. Returns the number of items (0 skips the phase).
pub const Plan = *const fn (desc: *anyopaque, threads: u32) callconv(.c) u32;
pub const Run = *const fn (desc: *const anyopaque, item: u32, scratch: *const Scratch) callconv(.c) void;

pub const Phase = extern struct { plan: Plan, run: Run };

pub const max_phases = 3;

pub const Kernel = extern struct {
    phases: [max_phases]Phase,
    phase_count: u32,
};

/// Builds a Kernel from typed phase functions: `struct { pub fn plan(desc: *D, threads: u32) u32; pub fn run(desc: *const D, item: u32,
/// scratch: *const Scratch) void }`, up to three of them.
pub fn kernel(comptime Desc: type, comptime phases: []const type) Kernel {
    if (phases.len == 0 or phases.len > max_phases) @compileError("a kernel has 1 to 3 phases");
    var result: Kernel = .{ .phases = undefined, .phase_count = phases.len };
    inline for (&result.phases, 0..) |*slot, i| {
        const P = phases[@min(i, phases.len - 1)];
        const Erased = struct {
            fn plan(desc: *anyopaque, threads: u32) callconv(.c) u32 {
                return P.plan(@as(*Desc, @ptrCast(@alignCast(desc))), threads);
            }
            fn run(desc: *const anyopaque, item: u32, scratch: *const Scratch) callconv(.c) void {
                P.run(@as(*const Desc, @ptrCast(@alignCast(desc))), item, scratch);
            }
        };
        slot.* = .{ .plan = &Erased.plan, .run = &Erased.run };
    }
    return result;
}

/// Where an absent optional tensor is null.
pub inline fn optional(comptime T: type, tensor: types.Tensor) ?[*]T {
    return if (tensor.data == 0) null else @ptrFromInt(tensor.data);
}

pub inline fn pointer(comptime T: type, tensor: types.Tensor) [*]T {
    return @ptrFromInt(tensor.data);
}

/// Everything one CPU level offers. Each level is compiled as its own object that exports one of these (level.zig).
pub const LevelTable = extern struct {
    lanes: u32,
    bf16_dot: u32,
    embedding: Kernel,
    rms_norm: Kernel,
    linear: Kernel,
    weight_pack: Kernel,
    rope_table: Kernel,
    rope_append: Kernel,
    attention: Kernel,
    silu_mul: Kernel,
    add: Kernel,
    cast: Kernel,
    copy: Kernel,
    positions: Kernel,
    keep_queries: Kernel,
    snap_score: Kernel,
    snap_select: Kernel,
    gather_kv: Kernel,
    sample: Kernel,
    accept: Kernel,
    publish: Kernel,
    /// Bytes of the packed form of an (n, k) weight.
    packed_weight_bytes: *const fn (n: u32, k: u32) callconv(.c) u64,
    /// Bytes that md_attention needs at most, for this descriptor's shapes and capacities.
    attention_workspace_bytes: *const fn (desc: *const types.AttentionDesc) callconv(.c) u64,
    /// Work for one thread of a probe: `rounds` rounds over `data`; returns bytes read or FLOPs done, and feeds `sink` so that nothing is
    /// optimised away.
    probe: *const fn (kind: types.ProbeKind, data: [*]const u8, bytes: usize, rounds: u32, sink: *f32) callconv(.c) f64,
};
