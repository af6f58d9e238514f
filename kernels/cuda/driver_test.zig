//! What opening a GPU says where it cannot be opened, and what the host does around the driver.
const std = @import("std");
const api_test = @import("../tests/api_test.zig");
const context_api = @import("../api/context.zig");
const types = @import("../abi/types.zig");
const errors = @import("../core/errors.zig");
const driver = @import("driver.zig");
const fake = @import("fake_driver.zig");
const graph_mod = @import("graph.zig");
const memory = @import("memory.zig");
const modules = @import("modules.zig");
const staging = @import("staging.zig");
const Context = @import("context.zig").Context;

const expectEqual = std.testing.expectEqual;
const gpa = std.testing.allocator;

fn expectFailure(err: errors.Error, text: []const u8, result: anytype) !void {
    const failed = if (result) |_| return error.TestExpectedError else |got| got;
    try expectEqual(err, failed);
    _ = errors.finish("md_context_create", failed);
    const start = "md_context_create: ".len;
    try std.testing.expectEqualStrings(text, std.mem.span(errors.lastError())[start..]);
}

test "without a driver the text says what to install" {
    if (driver.load()) |_| return error.SkipZigTest else |_| {}
    var ctx: u32 = 0;
    try api_test.expectError(
        .unavailable,
        "md_context_create: expected an NVIDIA driver (libcuda.so.1), found none: " ++
            "install driver 580 or newer, or use the cpu backend",
        context_api.md_context_create(&.{ .backend = .cuda }, &ctx),
    );
}

test "a driver that is too old, lacks a function, does not start or sees no GPU" {
    defer fake.reset();
    fake.version = 12080;
    // An old driver lacks functions too; its age is the better text.
    fake.missing_symbol = "cuFuncLoad";
    try expectFailure(
        error.Unavailable,
        "expected an NVIDIA driver for CUDA 13.0, got one for CUDA 12.8: " ++
            "install driver 580 or newer, or use the cpu backend",
        driver.resolve(fake.lookup),
    );
    fake.version = 13010;
    try expectFailure(
        error.Unavailable,
        "expected cuFuncLoad in libcuda.so.1, found none: " ++
            "install driver 580 or newer, or use the cpu backend",
        driver.resolve(fake.lookup),
    );
    fake.missing_symbol = "";
    fake.init_result = @enumFromInt(803);
    try expectFailure(
        error.Unavailable,
        "expected the NVIDIA driver to start, got CUDA error 803: " ++
            "check nvidia-smi, or use the cpu backend",
        driver.resolve(fake.lookup),
    );
    const no_gpu = "expected a GPU, the NVIDIA driver sees none: " ++
        "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the cpu backend";
    fake.init_result = .no_device;
    try expectFailure(error.Unavailable, no_gpu, driver.resolve(fake.lookup));
    fake.init_result = .success;
    fake.device_count = 0;
    try expectFailure(error.Unavailable, no_gpu, driver.resolve(fake.lookup));
}

test "an ordinal beyond the GPUs and a GPU that is too old" {
    defer fake.reset();
    const loaded = try driver.resolve(fake.lookup);
    try expectEqual(13000, loaded.version);
    try expectFailure(
        error.InvalidArgument,
        "expected a device below 2, the number of GPUs that the driver shows, got 2",
        Context.open(&loaded, 2),
    );
    fake.capability = 75;
    try expectFailure(
        error.Unsupported,
        "expected a GPU of compute capability 8.0 or newer, got 7.5 (Test GPU)",
        Context.open(&loaded, 0),
    );
}

test "memory is zeroed, refused with both numbers, and given back" {
    defer fake.reset();
    const before = fake.memory_count;
    const loaded = try driver.resolve(fake.lookup);
    const ctx = try Context.open(&loaded, 1);
    try expectEqual(132, ctx.sm_count);
    try std.testing.expect(ctx.hopper());
    for ([_]types.MemoryKind{ .device, .host }) |kind| {
        const got = try memory.alloc(ctx, kind, 1000);
        defer memory.free(ctx, got);
        const bytes: [*]const u8 = @ptrFromInt(got.address);
        try std.testing.expect(std.mem.allEqual(u8, bytes[0..1000], 0));
    }
    fake.free_bytes = 4096;
    try expectFailure(
        error.OutOfMemory,
        "expected at most the 4096 bytes available, got 5000",
        memory.alloc(ctx, .device, 5000),
    );
    ctx.close();
    try expectEqual(before, fake.memory_count);
}

test "writes of every size arrive, whatever came before" {
    defer fake.reset();
    const before = fake.memory_count;
    const loaded = try driver.resolve(fake.lookup);
    const ctx = try Context.open(&loaded, 0);
    const most = 2 * staging.large_bytes + 12345;
    const target = try memory.alloc(ctx, .device, most);
    const source = try gpa.alloc(u8, most);
    defer gpa.free(source);
    var random: std.Random.DefaultPrng = .init(std.testing.random_seed);
    random.random().bytes(source);
    const arrived: [*]const u8 = @ptrFromInt(target.address);
    const small = staging.small_bytes;
    for ([_]usize{ 1, 63, small / 2 + 1, small, small + 1, most, 7, small }) |bytes| {
        for (0..20) |_| {
            const from = random.random().uintAtMost(usize, most - bytes);
            const sent = source[from..][0..bytes];
            try memory.write(ctx, target.address + from, sent);
            try std.testing.expectEqualSlices(u8, sent, arrived[from..][0..bytes]);
        }
    }
    const uploaded: [*]const u8 = @ptrFromInt(try ctx.upload(source[0..Context.upload_bytes]));
    try std.testing.expectEqualSlices(
        u8,
        source[0..Context.upload_bytes],
        uploaded[0..Context.upload_bytes],
    );
    memory.free(ctx, target);
    ctx.close();
    try expectEqual(before, fake.memory_count);
}

test "a captured write takes its data at the call, for every launch" {
    defer fake.reset();
    const before = fake.memory_count;
    const loaded = try driver.resolve(fake.lookup);
    const ctx = try Context.open(&loaded, 0);
    const target = try memory.alloc(ctx, .device, 8);
    const arrived: [*]const u8 = @ptrFromInt(target.address);
    try graph_mod.Graph.begin(ctx);
    var data = "12345678".*;
    try memory.write(ctx, target.address, &data);
    const event = try graph_mod.Event.create(ctx);
    try event.record(ctx);
    const graph = try graph_mod.Graph.end(ctx);
    try expectEqual(1, event.graphs);
    data = "abcdefgh".*;
    try std.testing.expect(std.mem.allEqual(u8, arrived[0..8], 0));
    for (0..2) |_| {
        try memory.fill(ctx, target.address, 0xff, 8);
        try graph.launch(ctx);
        try std.testing.expectEqualStrings("12345678", arrived[0..8]);
    }
    graph.destroy(ctx);
    try expectEqual(0, event.graphs);
    event.destroy(ctx);
    memory.free(ctx, target);
    ctx.close();
    try expectEqual(before, fake.memory_count);
}

test "after an illegal address every call says that the context is lost" {
    defer fake.reset();
    const loaded = try driver.resolve(fake.lookup);
    const ctx = try Context.open(&loaded, 0);
    const got = try memory.alloc(ctx, .device, 64);
    fake.sync_result = .illegal_address;
    try expectFailure(
        error.Internal,
        "expected cuStreamSynchronize to succeed, got CUDA_ERROR_ILLEGAL_ADDRESS",
        ctx.sync(),
    );
    try expectFailure(
        error.Internal,
        "expected a sound CUDA context, this one is lost after CUDA_ERROR_ILLEGAL_ADDRESS: " ++
            "destroy it and open another",
        ctx.enter(),
    );
    memory.free(ctx, got);
    const others = fake.retained - 2;
    ctx.close();
    // Nothing holds the lost one, so the driver makes another; a sound one is kept.
    try expectEqual(others, fake.retained);
    fake.sync_result = .success;
    const next = try Context.open(&loaded, 0);
    try next.sync();
    next.close();
    try expectEqual(others + 1, fake.retained);
}

test "a kernel is made ready once in each context" {
    if (!modules.built) return error.SkipZigTest;
    defer fake.reset();
    const loaded = try driver.resolve(fake.lookup);
    const Params = extern struct { address: u64 };
    for (0..2) |_| {
        const ctx = try Context.open(&loaded, 0);
        defer ctx.close();
        fake.shared_limit = 0;
        for (1..3) |launches| {
            fake.launches = 0;
            for (0..launches) |_| try ctx.launch(
                .{ .module = .probe, .name = "md_probe_fma" },
                .{ .grid = .{ 1, 1, 1 }, .block = 32, .shared_bytes = 100 << 10 },
                &Params{ .address = 0 },
            );
            try expectEqual(launches, fake.launches);
            try expectEqual((227 - 1) << 10, fake.shared_limit);
        }
    }
}
