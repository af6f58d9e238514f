//! What a wrong descriptor is told. The null backend shares the checks with every other and
//! computes nothing, so no memory is needed.
const std = @import("std");
const types = @import("../abi/types.zig");
const api = @import("api_test.zig");

const expectError = api.expectError;
const op = api.op;

fn tensor(dtype: types.DType, shape: []const u32) types.Tensor {
    var result: types.Tensor = .{ .data = 4096, .rank = @intCast(shape.len), .dtype = dtype };
    @memcpy(result.shape[0..shape.len], shape);
    return result;
}

const cache: types.KvCache = .{
    .data = 4096,
    .layers = 2,
    .pages = 8,
    .page_size = 64,
    .kv_heads = 2,
    .head_dim = 64,
};

fn linear() types.LinearDesc {
    return .{
        .x = tensor(.bf16, &.{ 8, 128 }),
        .weight = .{ .data = 4096, .bytes = 128 * 256 * 2, .n = 256, .k = 128 },
        .bias = .{},
        .residual = .{},
        .out = tensor(.bf16, &.{ 8, 256 }),
        .epilogue = .none,
    };
}

fn attention() types.AttentionDesc {
    return .{
        .q = tensor(.bf16, &.{ 3, 8, 64 }),
        .q_sink = .{},
        .out = tensor(.bf16, &.{ 3, 8, 64 }),
        .q_start = tensor(.i32, &.{3}),
        .kv_len = tensor(.i32, &.{2}),
        .block_table = tensor(.i32, &.{ 2, 4 }),
        .prefix_table = .{},
        .prefix_len = .{},
        .tail_start = .{},
        .indices = .{},
        .workspace = tensor(.u8, &.{4096}),
        .cache = cache,
        .prefix_cache = .{},
        .layer = 1,
        .prefix_layer = 0,
        .sinks = 0,
        .window = 0,
        .scale = 0.125,
    };
}

test "linear: shapes, sizes and enum values" {
    const ctx = try api.open(.null);
    defer api.close(ctx);
    const call = op("linear");
    var desc = linear();
    try std.testing.expectEqual(.ok, call(ctx, &desc));
    desc.weight.k = 256;
    try expectError(
        .invalid_argument,
        "md_linear: expected a weight (256, 256) of at least 131072 bytes, got 65536",
        call(ctx, &desc),
    );
    desc.weight.bytes *= 2;
    try expectError(
        .invalid_argument,
        "md_linear: expected x of (rows, 256) bf16, got (8, 128) bf16",
        call(ctx, &desc),
    );
    desc = linear();
    desc.out.dtype = .f32;
    try std.testing.expectEqual(.ok, call(ctx, &desc));
    desc.out.dtype = .i32;
    try expectError(
        .invalid_argument,
        "md_linear: expected out of (8, 256) bf16, got (8, 256) i32",
        call(ctx, &desc),
    );
    desc = linear();
    desc.epilogue = .silu_mul;
    try expectError(
        .invalid_argument,
        "md_linear: expected out of (8, 128) bf16, got (8, 256) bf16",
        call(ctx, &desc),
    );
    @as(*u32, @ptrCast(&desc.epilogue)).* = 9;
    try expectError(
        .invalid_argument,
        "md_linear: expected epilogue of at most 1, got 9",
        call(ctx, &desc),
    );
    desc = linear();
    desc.x.data = 4097;
    try expectError(
        .invalid_argument,
        "md_linear: expected x at an address that 2 divides, got 0x1001",
        call(ctx, &desc),
    );
    desc = linear();
    desc.reserved = 1;
    try expectError(
        .invalid_argument,
        "md_linear: expected reserved to be 0, got 1",
        call(ctx, &desc),
    );
    desc = linear();
    desc.x.rank = 77;
    try expectError(
        .invalid_argument,
        "md_linear: expected x of (rows, 128) bf16, got rank 77",
        call(ctx, &desc),
    );
}

test "attention: caches, head groups and the ways to read less" {
    const ctx = try api.open(.null);
    defer api.close(ctx);
    const call = op("attention");
    var desc = attention();
    try std.testing.expectEqual(.ok, call(ctx, &desc));
    desc.cache.page_size = 96;
    try expectError(
        .invalid_argument,
        "md_attention: expected cache.page_size as a power of two from 64 to 4096, got 96",
        call(ctx, &desc),
    );
    desc = attention();
    desc.cache.head_dim = 80;
    try expectError(
        .invalid_argument,
        "md_attention: expected cache.head_dim of 64, 96, 128 or 256, got 80",
        call(ctx, &desc),
    );
    desc = attention();
    desc.layer = 2;
    try expectError(
        .invalid_argument,
        "md_attention: expected a layer of cache below 2, got 2",
        call(ctx, &desc),
    );
    desc = attention();
    desc.cache.kv_heads = 3;
    try expectError(
        .invalid_argument,
        "md_attention: expected 1 to 16 query heads for each of 3 KV heads, got 8 query heads",
        call(ctx, &desc),
    );
    desc = attention();
    desc.workspace.data += 8;
    try expectError(
        .invalid_argument,
        "md_attention: expected workspace at an address that 64 divides, got 0x1008",
        call(ctx, &desc),
    );
    desc = attention();
    desc.sinks = 4;
    try expectError(
        .invalid_argument,
        "md_attention: expected sinks of 0 without a window, got 4",
        call(ctx, &desc),
    );
    desc.window = 32;
    try std.testing.expectEqual(.ok, call(ctx, &desc));
    desc.tail_start = tensor(.i32, &.{2});
    try expectError(
        .invalid_argument,
        "md_attention: expected no tail_start without a prefix_cache or indices",
        call(ctx, &desc),
    );
    desc.indices = tensor(.i32, &.{ 2, 2, 16 });
    try expectError(
        .invalid_argument,
        "md_attention: expected a window of 0 beside a prefix_cache or indices, got 32",
        call(ctx, &desc),
    );
    desc.window = 0;
    desc.sinks = 0;
    try expectError(
        .invalid_argument,
        "md_attention: expected prefix_len of (2) i32, got none",
        call(ctx, &desc),
    );
    desc.prefix_len = tensor(.i32, &.{2});
    try std.testing.expectEqual(.ok, call(ctx, &desc));
    desc.prefix_cache = cache;
    try expectError(
        .invalid_argument,
        "md_attention: expected no indices beside a prefix_cache",
        call(ctx, &desc),
    );
    desc.indices = .{};
    desc.prefix_table = tensor(.i32, &.{ 2, 1 });
    try std.testing.expectEqual(.ok, call(ctx, &desc));
    desc.prefix_cache.head_dim = 128;
    try expectError(
        .invalid_argument,
        "md_attention: expected prefix_cache of 2 KV heads of 64, got 2 of 128",
        call(ctx, &desc),
    );
}

test "accept asks for what its rule needs, snap_select for a budget that fits" {
    const ctx = try api.open(.null);
    defer api.close(ctx);
    const row = tensor(.i32, &.{2});
    var accept: types.AcceptDesc = .{
        .chain = tensor(.i32, &.{ 2, 5 }),
        .target_tokens = tensor(.i32, &.{ 2, 4 }),
        .target_logits = .{},
        .draft_probs = .{},
        .params = tensor(.u32, &.{ 2, 8 }),
        .active = row,
        .lens = row,
        .count = row,
        .out = tensor(.i32, &.{ 2, 4 }),
        .rule = .match,
    };
    try std.testing.expectEqual(.ok, op("accept")(ctx, &accept));
    accept.rule = .rejection;
    try expectError(
        .invalid_argument,
        "md_accept: expected target_logits of (8, v) f32, got none",
        op("accept")(ctx, &accept),
    );
    var select: types.SnapSelectDesc = .{
        .scores = tensor(.f32, &.{ 2, 2, 512 }),
        .lens = row,
        .indices = tensor(.i32, &.{ 2, 2, 64 }),
        .prefix_len = row,
        .tail_start = row,
        .pooled = tensor(.f32, &.{ 2, 2, 512 }),
        .budget = 96,
        .window = 32,
        .kernel = 7,
        .pooling = .average,
    };
    try std.testing.expectEqual(.ok, op("snap_select")(ctx, &select));
    select.budget = 97;
    try expectError(
        .invalid_argument,
        "md_snap_select: expected budget of 33 to 96, got 97",
        op("snap_select")(ctx, &select),
    );
    select.budget = 96;
    select.kernel = 6;
    try expectError(
        .invalid_argument,
        "md_snap_select: expected an odd kernel, got 6",
        op("snap_select")(ctx, &select),
    );
}

test "copies and packs stay inside what they were given" {
    const ctx = try api.open(.null);
    defer api.close(ctx);
    var copy: types.CopyDesc = .{
        .source = 4096,
        .out = 8192,
        .bytes = 64,
        .source_stride = 0,
        .out_stride = 32,
        .count = 2,
    };
    try expectError(
        .invalid_argument,
        "md_copy: expected an out_stride of at least 64 bytes, got 32",
        op("copy")(ctx, &copy),
    );
    copy.out = 0;
    try expectError(
        .invalid_argument,
        "md_copy: expected out at an address that 1 divides, got 0x0",
        op("copy")(ctx, &copy),
    );
    const pack: types.PackDesc = .{
        .source = tensor(.bf16, &.{ 10, 128 }),
        .offset = 0,
        .weight = linear().weight,
        .row_offset = 250,
        .file = 0,
    };
    try expectError(
        .invalid_argument,
        "md_weight_pack: expected rows below 256, got rows 250 to 259",
        op("weight_pack")(ctx, &pack),
    );
}
