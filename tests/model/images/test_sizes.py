import pytest

from qwen_image_2.model.images import sizes


@pytest.mark.parametrize("ratio, expected", [
    ("1:1", (2048, 2048)), ("4:3", (2400, 1792)), ("3:4", (1792, 2400)), ("3:2", (2528, 1696)),
    ("2:3", (1696, 2528)), ("16:9", (2752, 1536)), ("9:16", (1536, 2752))])
def test_native_2k_table(ratio, expected):
    assert sizes.size_for(ratio, 2048) == expected
    assert sizes.is_native(*expected) and not sizes.is_native(*sizes.size_for(ratio, 1536))


@pytest.mark.parametrize("ratio, expected", [
    ("1:1", (1328, 1328)), ("4:3", (1472, 1104)), ("3:4", (1104, 1472)), ("3:2", (1584, 1056)),
    ("2:3", (1056, 1584)), ("16:9", (1664, 928)), ("9:16", (928, 1664))])
def test_official_table_of_1_x(ratio, expected):
    assert sizes.size_for(ratio, 1328) == expected and sizes.is_native(*expected)
    sizes.check_size(*expected)


@pytest.mark.parametrize("ratio", sizes.RATIOS)
@pytest.mark.parametrize("size_class", [size for size in sizes.CLASSES if size != 1328])
def test_every_size_is_a_multiple_of_32_near_its_class(ratio, size_class):
    width, height = sizes.size_for(ratio, size_class)
    across, down = sizes.RATIOS[ratio]
    assert width % 32 == height % 32 == 0
    assert width * height == pytest.approx(size_class**2, rel=0.08)
    assert width / height == pytest.approx(across / down, rel=0.07)


def test_sizes_follow_the_reference_formula():
    """calculate_dimensions of diffusers 0.42.1."""
    from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import calculate_dimensions
    for width, height in [(640, 480), (1920, 1080), (333, 1000), (17, 4000), (1024, 1024)]:
        assert sizes.size_for_area(1024, width / height) == calculate_dimensions(1024 * 1024, width / height)[:2]


@pytest.mark.parametrize("size, resolution, expected", [
    ((1024, 1024), 1024, (1024, 1024)), ((4000, 3000), 1024, (1184, 896)), ((3, 5), 1024, (800, 1312)),
    ((128, 128), 128, (128, 128)), ((12000, 900), 128, (480, 32)),
    ((1000, 700), None, (992, 704)), ((10, 40), None, (32, 32)),
])
def test_references_keep_their_ratio_on_a_grid_of_32(size, resolution, expected):
    assert sizes.reference_size(*size, resolution) == expected


@pytest.mark.parametrize("ratio, size_class, expected", [
    (16 / 9, 2048, (2752, 1536)), (1.5, 2048, (2528, 1696)), (1.495, 2048, (2528, 1696)), (1.0, 1024, (1024, 1024)),
    (21 / 9, 1024, (1568, 672)), (1.45, 2048, (2464, 1696))])
def test_a_ratio_of_the_table_has_the_tables_size(ratio, size_class, expected):
    assert sizes.size_for_ratio(ratio, size_class) == expected


@pytest.mark.parametrize("width, height, nearest", [(1001, 1024, "1008 x 1024"), (1024, 770, "1024 x 768"),
                                                    (32, 64, "64 x 64"),
                                                    (9000, 64, "8192 x 64")])
def test_impossible_sizes_name_the_nearest(width, height, nearest):
    with pytest.raises(ValueError, match=f"got {width} x {height}. The nearest size is {nearest}"):
        sizes.check_size(width, height)


def test_possible_sizes_pass():
    sizes.check_size(64, 2752)


@pytest.mark.parametrize("size_class", sizes.CLASSES)
@pytest.mark.parametrize("ratio", sizes.RATIOS)
def test_sizes_above_the_native_ones_are_told(ratio, size_class):
    note = sizes.large_note(*sizes.size_for(ratio, size_class))
    assert (note is not None) == (size_class > 2048)
    assert note is None or "Draw the layout at 2048 and enlarge it with Upscale" in note


def test_a_ratio_that_is_no_choice_names_the_choices():
    """Such as one that came through a link, which nobody has seen before the node runs."""
    with pytest.raises(ValueError, match=r"Unknown aspect ratio 5:4; choose 1:1, 4:3, .*9:16 or custom\."):
        sizes.chosen_size("5:4", 1024, 640, 320)
