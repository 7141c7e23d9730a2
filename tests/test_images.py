"""Images whose factors are known, and the renderers that draw them."""

import math

import pytest
import torch

from cegen.images.factors import Factor, FactorImages, FactorSpace
from cegen.images.render import Room, Sprites, draw_room, draw_sprites, dsprites_space, shapes3d_space
from cegen.mixing import gains
from cegen.sphere import sample_uniform


@pytest.mark.parametrize("space", [dsprites_space(), shapes3d_space()], ids=["dsprites", "shapes3d"])
def test_rows_and_levels_are_two_names_of_one_thing(space):
    row = torch.randint(len(space), (1000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(space.row(space.levels(row)), row)
    assert space.levels(torch.tensor([len(space) - 1])).tolist() == [[size - 1 for size in space.sizes]]


def test_sizes_are_those_of_the_published_sets():
    assert dsprites_space().sizes == (1, 3, 6, 40, 32, 32) and len(dsprites_space()) == 737_280
    assert shapes3d_space().sizes == (10, 10, 10, 8, 4, 15) and len(shapes3d_space()) == 480_000


@pytest.mark.parametrize("grid", [Sprites.grid, Room.grid], ids=["sprites", "room"])
def test_image_depends_on_its_row_alone(grid):
    source = grid(size=32)
    index = torch.randint(len(source), (40,), generator=torch.Generator().manual_seed(0))
    together, alone = source.images(index), torch.cat([source.images(i[None]) for i in index])
    assert together.dtype == torch.uint8 and torch.equal(together, alone)


@pytest.mark.parametrize("shape", range(3))
def test_sprite_moves_right_and_down(shape):
    x, y = torch.tensor([0.2, 0.8, 0.2]), torch.tensor([0.2, 0.2, 0.8])
    image = draw_sprites(torch.full((3,), shape), torch.full((3,), 0.7), torch.ones(3), x, y)[:, 0]
    pixel = torch.arange(64.0)
    column, row = ((image.sum(axis) * pixel).sum(1) / image.sum((1, 2)) for axis in (1, 2))
    assert torch.allclose(column - column[0], torch.tensor([0, 0.6 * 32, 0]), atol=0.1)
    assert torch.allclose(row - row[0], torch.tensor([0, 0, 0.6 * 32]), atol=0.1)


def test_sprite_is_turned_back_by_a_full_turn_only():
    turn = torch.tensor([0, math.pi / 2, math.pi, 2 * math.pi])
    for shape, same in enumerate([(0, 1, 2, 3), (0, 2, 3), (0, 3)]):
        image = draw_sprites(
            torch.full((4,), shape), torch.full((4,), 0.9), turn, torch.full((4,), 0.5), torch.full((4,), 0.5)
        )
        found = tuple(k for k in range(4) if (image[k] - image[0]).abs().max() < 1e-3)
        assert found == same


@pytest.mark.parametrize("dim", range(3, 9))
def test_sprite_world_is_locally_injective_and_continuous(dim):
    world, z = Sprites(dim, size=32), sample_uniform(100, dim, torch.Generator().manual_seed(dim)).double()
    assert float(gains(world, z).min()) > 0.1
    nearby = torch.nn.functional.normalize(
        z + 1e-6 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1)), dim=1
    )
    assert float((world(nearby) - world(z)).abs().max()) < 1e-3
    assert world(z).shape[1:] == world.observed_shape


def test_black_and_white_sprites_hide_small_moves():
    z = sample_uniform(500, 4, torch.Generator().manual_seed(0))
    nearby = torch.nn.functional.normalize(
        z + 1e-3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1)), dim=1
    )
    world = Sprites(4, size=32, binary=True)
    assert float((world(z) == world(nearby)).flatten(1).all(1).double().mean()) > 0.1


def test_room_shows_what_its_factors_say():
    one = torch.ones(3)
    room = draw_room(
        torch.tensor([2, 2, 2]), one, 0 * one, 0 * one, one / 3, 2 * one / 3, x=torch.tensor([-0.5, 0, 0.5])
    )
    floor, wall = room[1, :, -1, 2], room[1, :, 20, 2]
    assert floor.argmax() == 0 and wall.argmax() == 1, "a red floor, a green wall"
    blue = (room[:, 2] > 0.5) & (room[:, 0] < 0.4) & (room[:, 1] < 0.4)
    column = (blue.sum(1) * torch.arange(64)).sum(1) / blue.sum((1, 2))
    assert column[0] < column[1] - 3 and column[1] < column[2] - 3, "a blue ball that moves to the right"
    assert abs(float(column[1]) - 31.5) < 0.5


def test_more_rays_soften_the_same_room():
    g = torch.Generator().manual_seed(0)
    args = torch.arange(4), torch.full((4,), 1.1), torch.full((4,), 17.0), *torch.rand(3, 4, generator=g)
    hard, soft = draw_room(*args), draw_room(*args, rays=4)
    assert hard.shape == soft.shape and 0 < float((hard - soft).abs().mean()) < 0.05


def test_source_of_images_draws_what_it_announces():
    source = Sprites.grid(size=16)
    batch = source.sample(64, 0)
    assert batch.x.shape == (64, 1, 16, 16) and set(batch.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(batch.label, source.levels(batch.instance)[:, 1])
    item = source[int(batch.instance[0])]
    assert torch.equal(item["image"], batch.x[0]) and item["shape"] == batch.label[0]
    train, test = source.split(500, 200, seed=3)
    assert not set(train.rows.tolist()) & set(test.rows.tolist())
    kept = train.in_memory(chunk=64)
    every = torch.arange(500)
    assert torch.equal(kept.images(every), train.images(every)) and torch.equal(kept.values(every), train.values(every))
    assert torch.equal(kept.again(every[:9]).x, train.again(every[:9]).x)


def test_bad_input_is_named(unchecked):
    space = FactorSpace((Factor.named("shape", 3), Factor.named("one", 1)))
    with pytest.raises(ValueError, match="Did you mean 'shape'"):
        FactorImages("set", space, lambda row: row, "shapes")
    with pytest.raises(ValueError, match="at least two levels"):
        FactorImages("set", space, lambda row: row, "one")
    with pytest.raises(ValueError, match="dim=1"):
        Sprites(1)
    with pytest.raises(ValueError, match="must be of shape"):
        Room(5)(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="names of their own"):
        FactorSpace((Factor.named("a", 2), Factor.named("a", 3)))
