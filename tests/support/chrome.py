"""What several browser tests do on the page."""

from pathlib import Path

from playwright.sync_api import Locator, Page, expect

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def is_ours(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def open_tab(page: Page, name: str) -> None:
    tab = page.get_by_role("tab", name=name)
    if tab.is_visible():
        tab.click()
    else:  # on a phone the last ones are behind a button
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
    expect(page.get_by_role("tab", name=name, include_hidden=True).first).to_have_attribute("aria-selected", "true")
    editor = {"Inpaint": "#editor", "Variations": "#vary-editor"}.get(name)
    if editor:  # Gradio's editor fails where one is faster than it
        expect(page.locator(f"{editor} canvas").first).to_be_visible()
        page.wait_for_timeout(1000)


def set_slider(page: Page, name: str, value: str) -> None:
    number = page.get_by_label(f"number input for {name}").locator("visible=true")
    number.fill(value)
    number.press("Tab")


def paint(page: Page, canvas: Locator, *, radius: int, name: str = "editor") -> None:
    """A short stroke in the middle of the picture, once the brush has taken its size from it."""
    page.wait_for_function("([name, radius]) => window.maskimgRadius?.[name] === radius", arg=[name, radius])
    page.wait_for_timeout(2000)  # the editor takes a moment to make the brush
    canvas.first.scroll_into_view_if_needed()
    box = canvas.first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 15, y)
    page.mouse.down()
    page.mouse.move(x, y + 4, steps=4)
    page.mouse.move(x + 15, y, steps=4)
    page.mouse.up()


def fetch(page: Page, image: Locator, path: Path) -> Path:
    """The file behind an <img>, as its download button would save it."""
    address = image.get_attribute("src")
    assert address is not None
    path.write_bytes(page.request.get(address, max_retries=3).body())
    return path
