/** The scrolling part: it stays with the end for a reader who is there, and offers the way back to who is not. */

const NEAR = 48; // pixels from the end

/** @param {HTMLElement} scroller @param {HTMLElement} content @param {HTMLElement} jump */
export function followEnd(scroller, content, jump) {
  let atEnd = true;
  let top = 0;

  const toEnd = () => scroller.scrollTo({ top: scroller.scrollHeight });
  const look = () => {
    const near = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
    // Only a reader moves up; while the answer grows, its end moves away by itself.
    if (near) atEnd = true;
    else if (scroller.scrollTop < top) atEnd = false;
    top = scroller.scrollTop;
    jump.hidden = atEnd;
  };
  scroller.addEventListener("scroll", look, { passive: true });
  jump.addEventListener("click", () => follow());

  const grown = new ResizeObserver(() => (atEnd ? toEnd() : look()));
  grown.observe(content);
  grown.observe(scroller);

  /** To the end, and along with it. */
  function follow() {
    atEnd = true;
    jump.hidden = true;
    toEnd();
  }
  return follow;
}
