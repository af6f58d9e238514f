//! The C ABI, one row a function. lib.zig exports exactly these, emit.zig writes them for
//! TypeScript, and `hash` covers them, so a library and a TypeScript file that disagree never meet.
//!
//! How types cross: `usize` is an address that only the library follows, a pointer is host memory,
//! sizes in bytes are f64 (exact up to 2^53), so that no BigInt is ever made.
const std = @import("std");
const types = @import("types.zig");

const Status = types.Status;

pub const Function = struct {
    name: [:0]const u8,
    Type: type,
    /// One name for each parameter: a function type carries none.
    args: []const []const u8,
    doc: []const u8,
};

/// A function of the form (ctx u32, desc *const Desc) that enqueues one op.
pub const Op = struct {
    /// Also the field of core/backend.zig's Ops, and of the CPU's LevelTable.
    name: [:0]const u8,
    Desc: type,
    /// Tensors and caches that may be absent.
    optional: []const []const u8 = &.{},
    doc: []const u8,

    pub fn isOptional(comptime op: Op, comptime field: []const u8) bool {
        for (op.optional) |name| if (std.mem.eql(u8, name, field)) return true;
        return false;
    }
};

pub const HostBytes = ?[*]u8;
pub const ConstHostBytes = ?[*]const u8;
pub const CString = ?[*:0]const u8;

pub const functions = [_]Function{
    .{
        .name = "md_abi_version",
        .Type = fn () callconv(.c) u32,
        .args = &.{},
        .doc = "Raised by hand when the meaning of the ABI changes.",
    },
    .{
        .name = "md_abi_hash_low",
        .Type = fn () callconv(.c) u32,
        .args = &.{},
        .doc = "Low half of the hash over names, types, offsets and enum values.",
    },
    .{
        .name = "md_abi_hash_high",
        .Type = fn () callconv(.c) u32,
        .args = &.{},
        .doc = "High half of that hash.",
    },
    .{
        .name = "md_last_error",
        .Type = fn () callconv(.c) CString,
        .args = &.{},
        .doc = "Why this thread's last failed call failed: what was expected, what came.",
    },
    .{
        .name = "md_context_create",
        .Type = fn (?*const types.ContextDesc, ?*u32) callconv(.c) Status,
        .args = &.{ "desc", "out" },
        .doc = "Opens a device with one in-order stream and writes its handle to `out`.",
    },
    .{
        .name = "md_context_destroy",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"ctx"},
        .doc = "Waits for the stream, then frees the context and everything that was made from it.",
    },
    .{
        .name = "md_device_info",
        .Type = fn (u32, ?*types.DeviceInfo) callconv(.c) Status,
        .args = &.{ "ctx", "out" },
        .doc = "Memory, threads and instruction level of the device; of a GPU its name and capability too.",
    },
    .{
        .name = "md_memory_alloc",
        .Type = fn (u32, u32, f64, ?*types.Allocation) callconv(.c) Status,
        .args = &.{ "ctx", "kind", "bytes", "out" },
        .doc = "Allocates zeroed memory, 64-byte aligned at least.",
    },
    .{
        .name = "md_memory_free",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"memory"},
        .doc = "Waits for the stream, then frees the memory.",
    },
    .{
        .name = "md_memory_write",
        .Type = fn (u32, usize, ConstHostBytes, f64) callconv(.c) Status,
        .args = &.{ "ctx", "destination", "host", "bytes" },
        .doc = "Enqueues a copy from host memory, which is read before the call returns.",
    },
    .{
        .name = "md_memory_read",
        .Type = fn (u32, HostBytes, usize, f64) callconv(.c) Status,
        .args = &.{ "ctx", "host", "source", "bytes" },
        .doc = "Waits for everything enqueued, then copies to host memory.",
    },
    .{
        .name = "md_memory_fill",
        .Type = fn (u32, usize, u32, f64) callconv(.c) Status,
        .args = &.{ "ctx", "destination", "byte", "bytes" },
        .doc = "Enqueues setting `bytes` bytes to `byte`.",
    },
    .{
        .name = "md_stream_sync",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"ctx"},
        .doc = "Waits for everything enqueued.",
    },
    .{
        .name = "md_event_create",
        .Type = fn (u32, ?*u32) callconv(.c) Status,
        .args = &.{ "ctx", "out" },
        .doc = "Makes an event: a place in the stream that the host can wait for.",
    },
    .{
        .name = "md_event_record",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"event"},
        .doc = "Enqueues marking the event; inside a graph, each launch marks it.",
    },
    .{
        .name = "md_event_wait",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"event"},
        .doc = "Waits until the last mark enqueued so far has been reached.",
    },
    .{
        .name = "md_event_destroy",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"event"},
        .doc = "Frees the event once the stream has passed it; refused while a graph marks it.",
    },
    .{
        .name = "md_timestamp",
        .Type = fn (u32, usize) callconv(.c) Status,
        .args = &.{ "ctx", "destination" },
        .doc = "Enqueues writing the device clock, nanoseconds as f64, to an 8-byte aligned address.",
    },
    .{
        .name = "md_graph_begin",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"ctx"},
        .doc = "From here to md_graph_end ops are recorded instead of run.",
    },
    .{
        .name = "md_graph_end",
        .Type = fn (u32, ?*u32) callconv(.c) Status,
        .args = &.{ "ctx", "out" },
        .doc = "Ends the recording; `out` null drops it.",
    },
    .{
        .name = "md_graph_launch",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"graph"},
        .doc = "Enqueues everything the graph recorded, as one command.",
    },
    .{
        .name = "md_graph_destroy",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"graph"},
        .doc = "Waits for the stream, then frees the graph.",
    },
    .{
        .name = "md_file_open",
        .Type = fn (CString, u32, u32, u32, ?*u32) callconv(.c) Status,
        .args = &.{ "path", "header_bytes", "hash_low", "hash_high", "out" },
        .doc = "Maps a safetensors file whose JSON header has this length and this FNV-1a 64 hash.",
    },
    .{
        .name = "md_file_close",
        .Type = fn (u32) callconv(.c) Status,
        .args = &.{"file"},
        .doc = "Unmaps the file; refused while a context may still read from it.",
    },
    .{
        .name = "md_weight_bytes",
        .Type = fn (u32, u32, u32, u32, ?*f64) callconv(.c) Status,
        .args = &.{ "ctx", "format", "n", "k", "out" },
        .doc = "Bytes of an (n, k) weight in the device's packed form.",
    },
    .{
        .name = "md_attention_workspace",
        .Type = fn (u32, ?*const types.AttentionDesc, ?*f64) callconv(.c) Status,
        .args = &.{ "ctx", "desc", "out" },
        .doc = "Bytes of workspace that md_attention needs at most for these shapes; data may be absent.",
    },
    .{
        .name = "md_probe",
        .Type = fn (u32, u32, u32, ?*f64) callconv(.c) Status,
        .args = &.{ "ctx", "kind", "megabytes", "out" },
        .doc = "Measures a limit of the device (ProbeKind): GB/s or GFLOP/s. Waits.",
    },
    .{
        .name = "md_live_handles",
        .Type = fn (?*u32) callconv(.c) Status,
        .args = &.{"out"},
        .doc = "How many handles are alive, over all contexts and files.",
    },
    .{
        .name = "md_trace_read",
        .Type = fn (u32, HostBytes, u32, ?*u32) callconv(.c) Status,
        .args = &.{ "ctx", "buffer", "capacity", "needed" },
        .doc = "Null backend: the calls since the last read, a line each; kept while `capacity` is too small.",
    },
};

pub const ops = [_]Op{
    .{
        .name = "embedding",
        .Desc = types.EmbeddingDesc,
        .doc = "Gathers rows: out[i] = table[ids[i]].",
    },
    .{
        .name = "rms_norm",
        .Desc = types.RmsNormDesc,
        .optional = &.{"delta"},
        .doc = "Root-mean-square norm, after adding `delta` to x in place where it is given.",
    },
    .{
        .name = "linear",
        .Desc = types.LinearDesc,
        .optional = &.{ "bias", "residual" },
        .doc = "out = epilogue(x weight^T + bias) + residual.",
    },
    .{
        .name = "weight_pack",
        .Desc = types.PackDesc,
        .doc = "Packs rows of a row-major weight, from memory or from a mapped file.",
    },
    .{
        .name = "rope_table",
        .Desc = types.RopeTableDesc,
        .doc = "Cosines and sines of each row's position.",
    },
    .{
        .name = "rope_append",
        .Desc = types.RopeAppendDesc,
        .optional = &.{ "rope_sink", "q_sink" },
        .doc = "Splits qkv, rotates q and k, appends k and v to the paged cache.",
    },
    .{
        .name = "attention",
        .Desc = types.AttentionDesc,
        .optional = &.{
            "q_sink",
            "prefix_table",
            "prefix_len",
            "tail_start",
            "indices",
            "workspace",
            "prefix_cache",
        },
        .doc = "Causal attention of new rows over a paged cache: full, view, prefix cache or index list.",
    },
    .{
        .name = "silu_mul",
        .Desc = types.SiluMulDesc,
        .doc = "out = silu(gate) * up.",
    },
    .{ .name = "add", .Desc = types.AddDesc, .doc = "out = a + b." },
    .{ .name = "cast", .Desc = types.CastDesc, .doc = "Copies into another dtype." },
    .{ .name = "copy", .Desc = types.CopyDesc, .doc = "Copies runs of bytes." },
    .{
        .name = "positions",
        .Desc = types.PositionsDesc,
        .doc = "Positions of the new rows and lengths that include them.",
    },
    .{
        .name = "keep_queries",
        .Desc = types.KeepQueriesDesc,
        .doc = "Keeps the last queries of each sequence in a ring.",
    },
    .{
        .name = "snap_score",
        .Desc = types.SnapScoreDesc,
        .doc = "Attention that the last queries pay to each earlier token.",
    },
    .{
        .name = "snap_select",
        .Desc = types.SnapSelectDesc,
        .doc = "Pools the scores and picks the best tokens of each KV head.",
    },
    .{
        .name = "gather_kv",
        .Desc = types.GatherKvDesc,
        .doc = "Copies picked tokens' k and v into a compact cache.",
    },
    .{
        .name = "sample",
        .Desc = types.SampleDesc,
        .optional = &.{"probs"},
        .doc = "Draws a token from each row of logits.",
    },
    .{
        .name = "accept",
        .Desc = types.AcceptDesc,
        .optional = &.{ "target_tokens", "target_logits", "draft_probs" },
        .doc = "Decides how many drafted tokens stand, and moves each sequence on.",
    },
    .{
        .name = "publish",
        .Desc = types.PublishDesc,
        .doc = "Appends a record to a ring that the host reads.",
    },
};

/// The C type of op `Desc`'s function.
pub fn OpFunction(comptime Desc: type) type {
    return fn (u32, ?*const Desc) callconv(.c) Status;
}

pub const enums = .{
    .Status = types.Status,
    .Backend = types.Backend,
    .DType = types.DType,
    .CpuLevel = types.CpuLevel,
    .MemoryKind = types.MemoryKind,
    .WeightFormat = types.WeightFormat,
    .Epilogue = types.Epilogue,
    .Pooling = types.Pooling,
    .AcceptRule = types.AcceptRule,
    .NoiseStream = types.NoiseStream,
    .ProbeKind = types.ProbeKind,
};

/// Structs besides the ops' descriptors.
pub const structs = .{
    .Tensor = types.Tensor,
    .KvCache = types.KvCache,
    .Weight = types.Weight,
    .ContextDesc = types.ContextDesc,
    .DeviceInfo = types.DeviceInfo,
    .Allocation = types.Allocation,
    .SamplingParams = types.SamplingParams,
};

/// FNV-1a (64 bit) over everything that both sides must agree on.
pub const hash: u64 = blk: {
    @setEvalBranchQuota(1_000_000);
    var h: Fnv = .{};
    for (@typeInfo(@TypeOf(enums)).@"struct".fields) |row| h.addEnum(
        row.name,
        @field(enums, row.name),
    );
    for (@typeInfo(@TypeOf(structs)).@"struct".fields) |row| h.addStruct(
        row.name,
        @field(structs, row.name),
    );
    for (functions) |row| h.addFunction(row.name, row.Type);
    for (ops) |op| {
        h.addStruct(op.name, op.Desc);
        h.addFunction(op.name, OpFunction(op.Desc));
    }
    break :blk h.state;
};

const Fnv = struct {
    state: u64 = 0xcbf29ce484222325,

    fn add(h: *Fnv, text: []const u8) void {
        for (text) |byte| h.state = (h.state ^ byte) *% 0x100000001b3;
        h.state = (h.state ^ '\n') *% 0x100000001b3;
    }

    fn addNumber(h: *Fnv, number: comptime_int) void {
        h.add(std.fmt.comptimePrint("{d}", .{number}));
    }

    fn addEnum(h: *Fnv, name: []const u8, E: type) void {
        h.add(name);
        for (@typeInfo(E).@"enum".fields) |field| {
            h.add(field.name);
            h.addNumber(field.value);
        }
    }

    fn addStruct(h: *Fnv, name: []const u8, S: type) void {
        h.add(name);
        h.addNumber(@sizeOf(S));
        for (@typeInfo(S).@"struct".fields) |field| {
            h.add(field.name);
            h.addType(field.type);
            h.addNumber(@offsetOf(S, field.name));
        }
    }

    fn addFunction(h: *Fnv, name: []const u8, F: type) void {
        const info = @typeInfo(F).@"fn";
        h.add(name);
        for (info.params) |param| h.addType(param.type.?);
        h.addType(info.return_type.?);
    }

    /// A type's own name, without the path of the module it was reached through.
    fn addType(h: *Fnv, T: type) void {
        switch (@typeInfo(T)) {
            .optional => |info| h.addType(info.child),
            .pointer => |info| {
                h.add("*");
                h.addType(info.child);
            },
            .array => |info| {
                h.addNumber(info.len);
                h.addType(info.child);
            },
            else => h.add(baseName(T)),
        }
    }
};

pub fn baseName(comptime T: type) []const u8 {
    const full = @typeName(T);
    const dot = std.mem.lastIndexOfScalar(u8, full, '.') orelse return full;
    return full[dot + 1 ..];
}

comptime {
    @setEvalBranchQuota(100_000);
    for (functions) |row| {
        if (@typeInfo(row.Type).@"fn".params.len != row.args.len)
            @compileError(row.name ++ ": one argument name for each parameter");
    }
    for (ops) |op| {
        for (op.optional) |name| {
            if (!@hasField(op.Desc, name)) @compileError(op.name ++ " has no field " ++ name);
        }
        requireNoPadding(op.Desc);
    }
    for (@typeInfo(@TypeOf(structs)).@"struct".fields) |row| requireNoPadding(
        @field(structs, row.name),
    );
}

fn requireNoPadding(comptime S: type) void {
    var end = 0;
    for (@typeInfo(S).@"struct".fields) |field| {
        if (@offsetOf(S, field.name) != end) @compileError(
            @typeName(S) ++ " has a hole before " ++ field.name,
        );
        end += @sizeOf(field.type);
    }
    if (end != @sizeOf(S)) @compileError(@typeName(S) ++ " has a hole at its end");
}
