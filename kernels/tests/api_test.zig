//! The C functions as a caller sees them, on both backends: handles, captures, copies, files and
//! traces.
const std = @import("std");
const types = @import("../abi/types.zig");
const manifest = @import("../abi/manifest.zig");
const context_api = @import("../api/context.zig");
const memory_api = @import("../api/memory.zig");
const stream_api = @import("../api/stream.zig");
const graph_api = @import("../api/graph.zig");
const file_api = @import("../api/file.zig");
const ops_api = @import("../api/ops.zig");
const handles = @import("../core/handles.zig");

const Status = types.Status;
const expectEqual = std.testing.expectEqual;

/// The op's C function.
pub fn op(comptime name: []const u8) manifest.OpFunction(descOf(name)) {
    for (manifest.ops) |row| {
        if (std.mem.eql(u8, row.name, name)) return ops_api.function(row);
    }
    unreachable;
}

fn descOf(comptime name: []const u8) type {
    for (manifest.ops) |row| if (std.mem.eql(u8, row.name, name)) return row.Desc;
    @compileError("no op " ++ name);
}

pub fn expectError(status: Status, text: []const u8, got: Status) !void {
    try expectEqual(status, got);
    try std.testing.expectEqualStrings(text, std.mem.span(context_api.md_last_error().?));
}

pub fn open(backend: types.Backend) !u32 {
    var ctx: u32 = 0;
    try expectEqual(
        .ok,
        context_api.md_context_create(&.{ .backend = backend, .threads = 2 }, &ctx),
    );
    return ctx;
}

pub fn close(ctx: u32) void {
    std.debug.assert(context_api.md_context_destroy(ctx) == .ok);
}

fn alloc(ctx: u32, bytes: f64) !types.Allocation {
    var out: types.Allocation = .{};
    try expectEqual(.ok, memory_api.md_memory_alloc(ctx, 0, bytes, &out));
    return out;
}

fn addDesc(address: u64) types.AddDesc {
    const t: types.Tensor = .{
        .data = address,
        .shape = .{ 1, 4, 0, 0 },
        .rank = 2,
        .dtype = .bf16,
    };
    return .{ .a = t, .b = t, .out = t };
}

test "handles of a destroyed context are dead, and so is what it owned" {
    const before = handles.liveCount();
    const ctx = try open(.cpu);
    const memory = try alloc(ctx, 4096);
    var event: u32 = 0;
    try expectEqual(.ok, stream_api.md_event_create(ctx, &event));
    try expectEqual(before + 3, handles.liveCount());
    try expectEqual(.ok, context_api.md_context_destroy(ctx));
    try expectEqual(before, handles.liveCount());
    try expectEqual(.invalid_handle, context_api.md_context_destroy(ctx));
    try expectEqual(.invalid_handle, memory_api.md_memory_free(memory.handle));
    try expectEqual(.invalid_handle, stream_api.md_event_wait(event));
    try expectError(
        .invalid_handle,
        "md_stream_sync: expected handle of kind context, got 0",
        stream_api.md_stream_sync(0),
    );
}

test "a handle of another kind and null pointers are refused" {
    const ctx = try open(.cpu);
    defer close(ctx);
    const memory = try alloc(ctx, 64);
    try expectError(
        .invalid_handle,
        "md_event_wait: expected handle of kind event, got one of kind memory",
        stream_api.md_event_wait(memory.handle),
    );
    try expectEqual(.invalid_argument, context_api.md_device_info(ctx, null));
    try expectEqual(.invalid_argument, op("add")(ctx, null));
    try expectEqual(.invalid_argument, memory_api.md_memory_write(ctx, memory.address, null, 4));
    try expectEqual(
        .invalid_argument,
        memory_api.md_memory_write(ctx, memory.address, "1234", 3.5),
    );
    try expectEqual(.invalid_argument, memory_api.md_memory_alloc(ctx, 7, 64, null));
    try expectEqual(
        .out_of_memory,
        memory_api.md_memory_alloc(ctx, 0, 1 << 50, @constCast(&memory)),
    );
}

test "what cannot be part of a graph names itself, on both backends" {
    for ([_]types.Backend{ .cpu, .null }) |backend| {
        const ctx = try open(backend);
        defer close(ctx);
        var memory = try alloc(ctx, 64);
        var event: u32 = 0;
        var graph: u32 = 0;
        var bytes: [8]u8 = undefined;
        try expectEqual(.ok, stream_api.md_event_create(ctx, &event));
        try expectEqual(.invalid_argument, graph_api.md_graph_end(ctx, &graph));
        try expectEqual(.ok, graph_api.md_graph_begin(ctx));
        try expectError(
            .capture_violation,
            "md_stream_sync: expected outside of a capture, came between md_graph_begin and md_graph_end",
            stream_api.md_stream_sync(ctx),
        );
        try expectEqual(.capture_violation, stream_api.md_event_wait(event));
        try expectEqual(.capture_violation, stream_api.md_event_destroy(event));
        try expectEqual(
            .capture_violation,
            memory_api.md_memory_read(ctx, &bytes, memory.address, 8),
        );
        try expectEqual(.capture_violation, memory_api.md_memory_free(memory.handle));
        try expectEqual(.capture_violation, memory_api.md_memory_alloc(ctx, 0, 64, &memory));
        try expectEqual(.capture_violation, graph_api.md_graph_begin(ctx));
        try expectEqual(.ok, op("add")(ctx, &addDesc(memory.address)));
        try expectEqual(.ok, stream_api.md_event_record(event));
        try expectEqual(.ok, graph_api.md_graph_end(ctx, &graph));
        try expectEqual(.ok, stream_api.md_event_wait(event));
        try expectEqual(.ok, graph_api.md_graph_launch(graph));
        try expectEqual(.ok, stream_api.md_event_wait(event));
        try expectError(
            .invalid_argument,
            "md_event_destroy: expected an event that no graph marks, got one marked 1 times: destroy the graph first",
            stream_api.md_event_destroy(event),
        );
        try expectEqual(.ok, graph_api.md_graph_destroy(graph));
        try expectEqual(.ok, stream_api.md_event_destroy(event));
    }
}

test "a context that is closed in the middle of a capture lets go of everything" {
    const before = handles.liveCount();
    for ([_]types.Backend{ .cpu, .null }) |backend| {
        const ctx = try open(backend);
        const memory = try alloc(ctx, 64);
        try expectEqual(.ok, graph_api.md_graph_begin(ctx));
        try expectEqual(.ok, op("add")(ctx, &addDesc(memory.address)));
        close(ctx);
    }
    try expectEqual(before, handles.liveCount());
}

test "memory: zeroed, written in order, filled, read back" {
    const ctx = try open(.cpu);
    defer close(ctx);
    const memory = try alloc(ctx, 100);
    var got: [100]u8 = @splat(1);
    try expectEqual(.ok, memory_api.md_memory_read(ctx, &got, memory.address, 100));
    try std.testing.expect(std.mem.allEqual(u8, &got, 0));
    try expectEqual(.ok, memory_api.md_memory_fill(ctx, memory.address, 7, 100));
    try expectEqual(.ok, memory_api.md_memory_write(ctx, memory.address + 3, "abc", 3));
    try expectEqual(.ok, memory_api.md_memory_read(ctx, &got, memory.address, 100));
    try std.testing.expectEqualStrings("\x07\x07\x07abc\x07", got[0..7]);
    try expectEqual(.invalid_argument, stream_api.md_timestamp(ctx, memory.address + 1));
}

test "weights are packed from a file that is still what its header said" {
    var folder = std.testing.tmpDir(.{});
    defer folder.cleanup();
    const header = "{\"w\":{}}";
    const weights = [_]u16{ 0x3f80, 0x4000, 0x4040, 0x4080 };
    const content = std.mem.asBytes(
        &std.mem.nativeToLittle(u64, header.len),
    ).* ++ header.* ++ std.mem.asBytes(&weights).*;
    try folder.dir.writeFile(std.testing.io, .{ .sub_path = "w.safetensors", .data = &content });
    var buffer: [std.fs.max_path_bytes]u8 = undefined;
    const length = try folder.dir.realPathFile(std.testing.io, "w.safetensors", &buffer);
    buffer[length] = 0;
    const path: [*:0]const u8 = @ptrCast(&buffer);
    const hash = std.hash.Fnv1a_64.hash(header);
    const low: u32 = @truncate(hash);
    const high: u32 = @truncate(hash >> 32);

    const ctx = try open(.cpu);
    defer close(ctx);
    var file: u32 = 0;
    try expectEqual(.corrupt_file, file_api.md_file_open(path, header.len + 1, low, high, &file));
    try expectEqual(.corrupt_file, file_api.md_file_open(path, header.len, low ^ 1, high, &file));
    try expectEqual(.corrupt_file, file_api.md_file_open(path, 1 << 20, low, high, &file));
    try expectEqual(.io_error, file_api.md_file_open("no/such/file", header.len, low, high, &file));
    try expectEqual(.ok, file_api.md_file_open(path, header.len, low, high, &file));
    var weight_bytes: f64 = 0;
    try expectEqual(.ok, context_api.md_weight_bytes(ctx, 0, 2, 2, &weight_bytes));
    const memory = try alloc(ctx, weight_bytes);
    var desc: types.PackDesc = .{
        .source = .{ .shape = .{ 2, 2, 0, 0 }, .rank = 2, .dtype = .bf16 },
        .offset = 0,
        .weight = .{ .data = memory.address, .bytes = @intFromFloat(weight_bytes), .n = 2, .k = 2 },
        .row_offset = 0,
        .file = file,
    };
    try expectEqual(.ok, op("weight_pack")(ctx, &desc));
    var row: [4]u16 = undefined;
    try expectEqual(.ok, memory_api.md_memory_read(ctx, std.mem.asBytes(&row), memory.address, 8));
    try std.testing.expectEqualSlices(u16, &weights, &row);
    desc.offset = 2;
    try expectError(
        .corrupt_file,
        "md_weight_pack: expected 8 bytes at offset 2 of the file's data, which has 8",
        op("weight_pack")(ctx, &desc),
    );
    try expectEqual(.ok, file_api.md_file_close(file));
    try expectEqual(.invalid_handle, op("weight_pack")(ctx, &desc));
}

test "the null backend writes down every call, and computes nothing" {
    const ctx = try open(.null);
    defer close(ctx);
    const memory = try alloc(ctx, 64);
    var graph: u32 = 0;
    try expectEqual(.ok, graph_api.md_graph_begin(ctx));
    try expectEqual(.ok, op("add")(ctx, &addDesc(memory.address)));
    try expectEqual(.ok, graph_api.md_graph_end(ctx, &graph));
    try expectEqual(.ok, graph_api.md_graph_launch(graph));
    try expectEqual(.ok, stream_api.md_stream_sync(ctx));
    var text: [512]u8 = undefined;
    var needed: u32 = 0;
    try expectEqual(.ok, context_api.md_trace_read(ctx, &text, 3, &needed));
    const length = needed;
    try expectEqual(.ok, context_api.md_trace_read(ctx, &text, text.len, &needed));
    try expectEqual(length, needed);
    try std.testing.expectEqualStrings(
        \\memory_alloc kind=device bytes=64
        \\graph=1 add a=(1, 4) bf16 b=(1, 4) bf16 out=(1, 4) bf16
        \\graph_launch graph=1
        \\stream_sync
        \\
    , text[0..length]);
    try expectEqual(.ok, context_api.md_trace_read(ctx, &text, text.len, &needed));
    try expectEqual(0, needed);
    const cpu = try open(.cpu);
    defer close(cpu);
    try expectEqual(.unsupported, context_api.md_trace_read(cpu, &text, text.len, &needed));
}
