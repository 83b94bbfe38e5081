(() => {
  const SORTED_FROM = 3, FILTERED_FROM = 10;

  const valueOf = (cell) => {
    const value = Number.parseFloat(cell.dataset.value);
    return Number.isNaN(value) ? null : value;
  };

  // Numbers by value, texts by name, what has no number last.
  const order = (column, sign) => (one, other) => {
    const [a, b] = [one.cells[column], other.cells[column]];
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x !== null && y !== null) return sign * (x - y);
    if (x !== null || y !== null) return x === null ? 1 : -1;
    const options = { numeric: true };
    return sign * a.textContent.localeCompare(b.textContent, undefined, options);
  };

  const sort = (table, head, column) => {
    const rows = [...table.tBodies[0].rows];
    const numbers = rows.some((row) => valueOf(row.cells[column]) !== null);
    const first = numbers ? "descending" : "ascending";
    const second = numbers ? "ascending" : "descending";
    const direction = head.ariaSort === first ? second : first;
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    head.ariaSort = direction;
    rows.sort(order(column, direction === "ascending" ? 1 : -1));
    table.tBodies[0].append(...rows);
  };

  const sortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  };

  const filterable = (block) => {
    const box = document.createElement("input");
    box.type = "search";
    box.className = "filter";
    box.placeholder = box.ariaLabel = "Filter rows";
    box.addEventListener("input", () => {
      const words = box.value.toLowerCase().split(/\s+/);
      for (const row of block.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    block.prepend(box);
  };

  for (const table of document.querySelectorAll(".report table")) {
    if (table.tBodies[0].rows.length >= SORTED_FROM) sortable(table);
  }
  for (const block of document.querySelectorAll(".report .table")) {
    if (block.querySelectorAll("tbody tr").length >= FILTERED_FROM) filterable(block);
  }
})();
