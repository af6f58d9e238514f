//! Reference maths of attention and SnapKV in f64, and paged caches full of random finite values to
//! run them on.
const std = @import("std");
const types = @import("../abi/types.zig");
const layout = @import("../cpu/layout.zig");
const simd = @import("../cpu/simd.zig");

const allocator = std.testing.allocator;

/// A paged store with one block table. Every page is random, those beyond the sequences' lengths
/// too.
pub const Cache = struct {
    kv: types.KvCache,
    data: []align(64) u16,
    /// (b, max_pages)
    table: []i32,
    max_pages: u32,

    pub const Shape = struct {
        b: u32,
        max_tokens: u32,
        kv_heads: u32,
        d: u32,
        page_size: u32 = 64,
        layers: u32 = 2,
    };

    pub fn init(random: std.Random, shape: Shape) !Cache {
        const max_pages = (shape.max_tokens + shape.page_size - 1) / shape.page_size;
        const pages = shape.b * max_pages + 3;
        const elements = 2 * shape.layers * pages * shape.kv_heads * shape.page_size * shape.d;
        const data = try allocator.alignedAlloc(u16, .@"64", elements);
        for (data) |*x| x.* = simd.f32ToBf16(random.floatNorm(f32));
        const ids = try allocator.alloc(i32, pages);
        defer allocator.free(ids);
        for (ids, 0..) |*id, i| id.* = @intCast(i);
        random.shuffle(i32, ids);
        return .{
            .kv = .{
                .data = @intFromPtr(data.ptr),
                .layers = shape.layers,
                .pages = pages,
                .page_size = shape.page_size,
                .kv_heads = shape.kv_heads,
                .head_dim = shape.d,
            },
            .data = data,
            .table = try allocator.dupe(i32, ids[0 .. shape.b * max_pages]),
            .max_pages = max_pages,
        };
    }

    pub fn deinit(self: *const Cache) void {
        allocator.free(self.data);
        allocator.free(self.table);
    }

    fn block(self: *const Cache, layer: u32, s: usize, token: u32, is_v: u1, head: u32) [*]u16 {
        const page: u32 = @intCast(self.table[s * self.max_pages + token / self.kv.page_size]);
        return layout.kvBlock(self.kv, layer, page, is_v, head);
    }

    /// Element i of the k of (sequence, token, KV head).
    pub fn k(self: *const Cache, layer: u32, s: usize, token: u32, head: u32, i: u32) *u16 {
        const offset = layout.kOffset(token % self.kv.page_size, i, self.kv.head_dim);
        return &self.block(layer, s, token, 0, head)[offset];
    }

    pub fn v(self: *const Cache, layer: u32, s: usize, token: u32, head: u32, i: u32) *u16 {
        const offset = layout.vOffset(token % self.kv.page_size, i, self.kv.head_dim);
        return &self.block(layer, s, token, 1, head)[offset];
    }
};

pub fn f64FromBf16(x: u16) f64 {
    return simd.bf16ToF32(x);
}

/// Scores and values of the tokens that one query row reads, gathered one by one.
pub const Row = struct {
    scores: std.ArrayList(f64) = .empty,
    values: std.ArrayList(f64) = .empty,
    d: u32,

    pub fn deinit(self: *Row) void {
        self.scores.deinit(allocator);
        self.values.deinit(allocator);
    }

    pub fn add(
        self: *Row,
        q: []const u16,
        scale: f64,
        cache: *const Cache,
        layer: u32,
        s: usize,
        token: u32,
        head: u32,
    ) !void {
        var dot: f64 = 0;
        for (q, 0..) |x, i| {
            dot += f64FromBf16(x) * f64FromBf16(cache.k(layer, s, token, head, @intCast(i)).*);
        }
        try self.scores.append(allocator, scale * dot);
        for (0..self.d) |i| {
            const value = cache.v(layer, s, token, head, @intCast(i)).*;
            try self.values.append(allocator, f64FromBf16(value));
        }
    }

    /// softmax(scores) values; zeros where no token was added.
    pub fn finish(self: *const Row, out: []f64) void {
        @memset(out, 0);
        softmax(self.scores.items);
        for (self.scores.items, 0..) |p, t| {
            for (out, self.values.items[t * self.d ..][0..self.d]) |*o, value| o.* += p * value;
        }
    }
};

pub fn softmax(scores: []f64) void {
    if (scores.len == 0) return;
    const max = std.mem.max(f64, scores);
    var sum: f64 = 0;
    for (scores) |*x| {
        x.* = @exp(x.* - max);
        sum += x.*;
    }
    for (scores) |*x| x.* /= sum;
}
