//! What a backend is: everything that api/ needs of a device, once the arguments are checked. A
//! backend that lacks a function or an op does not compile.
const types = @import("../abi/types.zig");
const manifest = @import("../abi/manifest.zig");
const errors = @import("errors.zig");
const os = @import("os.zig");

const Error = errors.Error;

/// The backend's own context, memory, event and graph.
pub const State = *anyopaque;

pub const Memory = struct { address: u64, bytes: u64, kind: types.MemoryKind };

pub const Backend = struct {
    open: *const fn (desc: *const types.ContextDesc) Error!State,
    /// Waits for the stream. Everything made from the context is gone already.
    close: *const fn (State) void,
    info: *const fn (State) types.DeviceInfo,

    alloc: *const fn (State, types.MemoryKind, bytes: u64) Error!Memory,
    free: *const fn (State, Memory) void,
    write: *const fn (State, destination: u64, bytes: []const u8) Error!void,
    read: *const fn (State, host: []u8, source: u64) Error!void,
    fill: *const fn (State, destination: u64, byte: u8, bytes: u64) Error!void,

    sync: *const fn (State) Error!void,
    timestamp: *const fn (State, destination: u64) Error!void,
    /// Takes 1 off `word` once nothing enqueued so far reads host memory of the caller's any more.
    release: *const fn (State, word: *os.Word) Error!void,

    event_create: *const fn (State) Error!*anyopaque,
    event_record: *const fn (State, event: *anyopaque) Error!void,
    event_wait: *const fn (State, event: *anyopaque) Error!void,
    /// Graphs that hold a record of the event.
    event_graphs: *const fn (event: *anyopaque) u32,
    event_destroy: *const fn (State, event: *anyopaque) void,

    graph_begin: *const fn (State) Error!void,
    /// Where it fails the capture is over all the same.
    graph_end: *const fn (State) Error!*anyopaque,
    graph_launch: *const fn (State, graph: *anyopaque) Error!void,
    graph_destroy: *const fn (State, graph: *anyopaque) void,

    weight_bytes: *const fn (State, n: u32, k: u32) u64,
    attention_workspace: *const fn (State, *const types.AttentionDesc) u64,
    probe: *const fn (State, types.ProbeKind, bytes: u64) Error!f64,
    /// What has been recorded since the last call; null where the backend records nothing. Valid
    /// until the next call.
    trace: *const fn (State) ?[]const u8,
    trace_clear: *const fn (State) void,

    ops: Ops,
};

/// One function an op, named as in the manifest.
pub const Ops = struct {
    embedding: Op(types.EmbeddingDesc),
    rms_norm: Op(types.RmsNormDesc),
    linear: Op(types.LinearDesc),
    weight_pack: Op(types.PackDesc),
    rope_table: Op(types.RopeTableDesc),
    rope_append: Op(types.RopeAppendDesc),
    attention: Op(types.AttentionDesc),
    silu_mul: Op(types.SiluMulDesc),
    add: Op(types.AddDesc),
    cast: Op(types.CastDesc),
    copy: Op(types.CopyDesc),
    positions: Op(types.PositionsDesc),
    keep_queries: Op(types.KeepQueriesDesc),
    snap_score: Op(types.SnapScoreDesc),
    snap_select: Op(types.SnapSelectDesc),
    gather_kv: Op(types.GatherKvDesc),
    sample: Op(types.SampleDesc),
    accept: Op(types.AcceptDesc),
    publish: Op(types.PublishDesc),
};

/// Enqueues the op; `desc` is the caller's and is copied.
pub fn Op(comptime Desc: type) type {
    return *const fn (State, desc: *const Desc) Error!void;
}

comptime {
    const fields = @typeInfo(Ops).@"struct".fields;
    if (fields.len != manifest.ops.len) @compileError("Ops and the manifest name different ops");
    for (fields, manifest.ops) |field, op| {
        if (field.type != Op(op.Desc)) @compileError("Ops and the manifest differ at " ++ op.name);
    }
}
