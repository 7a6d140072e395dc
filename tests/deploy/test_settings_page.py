from tools.settings_page import PAGE, TIERS, page


def test_page_is_that_of_the_settings() -> None:
    assert PAGE.read_text("utf-8") == page()


def test_every_setting_of_every_tier_is_told() -> None:
    text = page()

    for cls in TIERS.values():
        for name in cls.model_fields:
            assert f"| `PIXTRAL_{name.upper()}` |" in text
