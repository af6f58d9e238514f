//! The CPU backend's order of bytes inside KV pages and packed weights. Both put `tile` tokens (or weight rows) side by side in lanes, and pairs of
//! neighbouring d (or k) in one 32-bit lane, so that the bf16 pair dot product never sums across lanes.
const std = @import("std");
const types = @import("../abi/types.zig");

/// Tokens of a KV tile, and output columns of a packed weight tile. A page is a whole number of tiles.
pub const tile = 64;

/// One (page, k or v, head) block is page_size * d elements. K: tiles of 64 tokens, each [d / 2][64 tokens][2].
/// V: tiles of 64 tokens, each [32 token pairs][d][2].
pub inline fn kvBlock(cache: types.KvCache, layer: u32, page: u32, is_v: u1, head: u32) [*]u16 {
    const block: u64 = @as(u64, cache.page_size) * cache.head_dim;
    const index = ((@as(u64, layer) * cache.pages + page) * 2 + is_v) * cache.kv_heads + head;
    return @as([*]u16, @ptrFromInt(cache.data)) + index * block;
}

/// Element offset of (token in page, d index) in a K block.
pub inline fn kOffset(token: u32, i: u32, head_dim: u32) usize {
    const t = token / tile;
    return @as(usize, t) * tile * head_dim + @as(usize, i / 2) * (2 * tile) + (token % tile) * 2 + i % 2;
}

/// Element offset of (token in page, d index) in a V block.
pub inline fn vOffset(token: u32, i: u32, head_dim: u32) usize {
    const t = token / tile;
    return @as(usize, t) * tile * head_dim + @as(usize, (token % tile) / 2) * (2 * head_dim) + i * 2 + token % 2;
}

/// Packed weight: tiles of 64 rows (n), each [k / 2 rounded up][64][2] bf16; missing rows and the odd k are zero.
pub inline fn packedWeightBytes(n: u32, k: u32) u64 {
    const tiles = std.math.divCeil(u64, n, tile) catch unreachable;
    const pairs = std.math.divCeil(u64, k, 2) catch unreachable;
    return tiles * pairs * tile * 2 * @sizeOf(u16);
}
