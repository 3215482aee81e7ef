"use strict";
(() => {
  const table = document.getElementById("all");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const filter = document.getElementById("filter");
  const status = document.getElementById("status");
  const shown = document.getElementById("shown");
  const statusColumn = heads.findIndex((head) => head.textContent === "Status");
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    const text = cell.textContent.trim();
    return text === "–" ? null : text.toLowerCase();
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  // What opens beneath a record gets a row of its own, as wide as the table; without this script it stays in its cell.
  const shut = (row) => {
    const details = row.querySelector("details");
    const below = row.nextElementSibling;
    if (below && below.classList.contains("below")) {
      details.append(below.querySelector(".sheet"));
      below.remove();
    }
    details.open = false;
  };
  rows.forEach((row) => {
    const details = row.querySelector("details");
    details.addEventListener("toggle", () => {
      const sheet = details.querySelector(".sheet");
      if (!details.open) { shut(row); return; }
      if (!sheet) return;
      const below = document.createElement("tr");
      below.className = "below";
      const cell = below.insertCell();
      cell.colSpan = heads.length;
      cell.append(sheet);
      row.after(below);
    });
  });

  const sort = (column) => {
    rows.forEach(shut);
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = rows.slice().sort((a, b) => {
      const [left, right] = [key(a, column), key(b, column)];
      if (left === null || right === null) return (left === null) - (right === null);
      return down ? compare(right, left) : compare(left, right);
    });
    body.append(...order);
  };

  heads.forEach((head, column) => {
    if (head.classList.contains("plain")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(column));
    head.replaceChildren(button);
  });

  const narrow = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row) => {
      if (row.querySelector("details").open) shut(row);
      const fits = wanted.every((word) => words.get(row).includes(word));
      const right = !status.value || row.cells[statusColumn].textContent.trim() === status.value;
      row.hidden = !(fits && right);
      count += row.hidden ? 0 : 1;
    });
    shown.textContent = `${count} of ${rows.length} records`;
  };
  document.querySelectorAll(".sheet pre").forEach((pre) => {
    if (!navigator.clipboard) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(pre.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    pre.before(button);
  });

  filter.addEventListener("input", narrow);
  status.addEventListener("change", narrow);
  document.querySelector(".tools").hidden = false;
  narrow();
})();
